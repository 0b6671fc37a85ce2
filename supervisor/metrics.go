package supervisor

import (
	"maps"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

// metrics serves the status in Prometheus' text form. Everything is read when asked for, so that nobody pays for it otherwise.
func (s *Supervisor) metrics() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(&collector{s})
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorLog: s.opt.Log})
}

type collector struct{ s *Supervisor }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("hotdeploy_"+name, help, labels, nil)
}

var (
	descInfo        = desc("daemon_info", "The supervisor; always 1.", "service", "version")
	descResident    = desc("daemon_resident_bytes", "Resident memory of the supervisor.")
	descServing     = desc("serving", "1 if a generation serves, else 0.")
	descGeneration  = desc("generation_info", "A living generation; always 1.", "generation", "release", "state")
	descConnections = desc("generation_connections", "Open connections that the generation accepted on its listeners.", "generation", "release", "state")
	descMemory      = desc("generation_resident_bytes", "Resident memory of the generation's process tree.", "generation", "release", "state")
	descProcesses   = desc("generation_processes", "Processes of the generation.", "generation", "release", "state")
	descStarted     = desc("generation_start_time_seconds", "When the generation was started, in seconds since 1970.", "generation", "release", "state")
	descHandoff     = desc("generation_handoff_connections", "Of the generation's last handoffs: connections that it gave away (moved), kept, had refused, and got (taken).", "generation", "release", "state", "what")
	descGenPause    = desc("generation_handoff_longest_pause_seconds", "The longest pause of a connection when the generation gave its connections away.", "generation", "release", "state")
	descUpgrades    = desc("upgrades_total", "Ended upgrades since the supervisor started.", "kind", "outcome")
	descCrashes     = desc("crashes_total", "Serving generations that ended by themselves since the supervisor started.")
	descMoved       = desc("connections_moved_total", "Live connections that moved from one generation to another since the supervisor started.")
	descKept        = desc("connections_kept_total", "Live connections that stayed in a handoff, by the reason.", "reason")
	descRefused     = desc("connections_refused_total", "Of those that stayed, how many the taking generation would not have.")
	descPause       = desc("handoff_longest_pause_seconds", "The longest pause of a connection in the last handoff.")
	descInFlight    = desc("upgrade_in_flight", "1 while an upgrade is in flight.")
)

// Describe is empty on purpose: an unchecked collector, whose labels come and go with the generations.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect is called for each scrape.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	st := c.s.status()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(descInfo, 1, st.Service, st.Daemon.Version)
	gauge(descResident, float64(st.Daemon.RSS))
	gauge(descServing, oneIf(st.State == api.StateServing))
	gauge(descInFlight, oneIf(st.Upgrade != nil))
	for _, g := range st.Generations {
		l := []string{strconv.Itoa(g.Number), g.Release.Version, g.State}
		gauge(descGeneration, 1, l...)
		gauge(descProcesses, float64(g.Processes), l...)
		gauge(descStarted, float64(g.Started.UnixMilli())/1000, l...)
		if g.Connections >= 0 {
			gauge(descConnections, float64(g.Connections), l...)
		}
		if g.RSS >= 0 {
			gauge(descMemory, float64(g.RSS), l...)
		}
		if h := g.Handoff; h != nil {
			kept := 0
			for _, n := range h.Kept {
				kept += n
			}
			gauge(descHandoff, float64(h.Moved), append(l, "moved")...)
			gauge(descHandoff, float64(kept), append(l, "kept")...)
			gauge(descHandoff, float64(h.Refused), append(l, "refused")...)
			gauge(descGenPause, h.LongestPause.Seconds(), l...)
		}
		if h := g.Taken; h != nil {
			gauge(descHandoff, float64(h.Moved), append(l, "taken")...)
		}
	}
	var counted map[upgradeCount]int
	var crashes, moved, refused int
	var pause time.Duration
	kept := map[string]int{}
	c.s.do(func() {
		moved, refused, pause = c.s.moved, c.s.refused, c.s.longestPause
		maps.Copy(kept, c.s.kept)
		counted = make(map[upgradeCount]int, len(c.s.counts))
		for k, n := range c.s.counts {
			counted[k] = n
		}
		crashes = c.s.crashes
	})
	for k, n := range counted {
		ch <- prometheus.MustNewConstMetric(descUpgrades, prometheus.CounterValue, float64(n), k.kind, string(k.outcome))
	}
	for why, n := range kept {
		ch <- prometheus.MustNewConstMetric(descKept, prometheus.CounterValue, float64(n), why)
	}
	ch <- prometheus.MustNewConstMetric(descMoved, prometheus.CounterValue, float64(moved))
	ch <- prometheus.MustNewConstMetric(descRefused, prometheus.CounterValue, float64(refused))
	gauge(descPause, pause.Seconds())
	ch <- prometheus.MustNewConstMetric(descCrashes, prometheus.CounterValue, float64(crashes))
}

// upgradeCount is what ended upgrades are counted by.
type upgradeCount struct {
	kind    string
	outcome api.Outcome
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
