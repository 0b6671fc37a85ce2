package load

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
)

// Report is what the clients noticed.
type Report struct {
	Took    time.Duration `json:"took_ns"`
	Aborted string        `json:"aborted,omitempty"` // the context of Start ended before Stop

	Total    int            `json:"websockets"` // to be held
	Kept     int            `json:"kept"`       // open from first to last
	Unopened int            `json:"unopened"`   // never opened
	Closed   int            `json:"closed"`     // ended before Stop, by whatever
	Changed  int            `json:"changed"`    // answered by more than one version or pid
	Versions map[string]int `json:"versions"`   // WebSockets by the version that answered last
	Held     Held           `json:"-"`          // whether Changed is wrong

	MessagesSent   int64 `json:"messages_sent"`
	MessagesEchoed int64 `json:"messages_echoed"`
	MessagesLost   int64 `json:"messages_lost"` // a later one was echoed, or the connection ended
	MessagesDue    int64 `json:"messages_due"`  // may still be echoed
	Doubled        int64 `json:"messages_doubled"`
	Reordered      int64 `json:"messages_reordered"`
	Miscounted     int64 `json:"messages_miscounted"` // the server's counter skipped or stood still
	Wrong          int64 `json:"messages_wrong"`      // answers to nothing that was sent
	// MessagesSkipped were not sent because too many were unanswered; a server
	// that is slow, not one that is wrong.
	MessagesSkipped int64         `json:"messages_skipped"`
	SlowestEcho     time.Duration `json:"slowest_echo_ns"`

	RequestsOK      int64            `json:"requests_ok"`
	RequestsFailed  int64            `json:"requests_failed"`
	RequestsDue     int64            `json:"requests_due"`
	RequestFailures map[string]int64 `json:"request_failures"` // by reason
	RequestVersions map[string]int64 `json:"request_versions"` // by the version that answered
	Latency         Latency          `json:"latency"`

	// DriverLate is how late the driver itself ran at worst. Slow answers of
	// that size tell more about the machine than about the server.
	DriverLate time.Duration `json:"driver_late_ns"`
	Errors     []Note        `json:"errors"` // the first ones
}

// report adds up; it waits for nobody but short locks.
func (l *Load) report() Report {
	r := Report{Took: time.Since(l.notes.began), Total: len(l.sockets), Held: l.opts.Held, Versions: map[string]int{}}
	for _, s := range l.sockets {
		s.report(&r)
	}
	l.requests.report(&r)
	l.mu.Lock()
	r.DriverLate = max(r.DriverLate, l.late)
	l.mu.Unlock()
	r.Latency = l.requests.samples.between(0, math.MaxInt64)
	r.Errors = l.notes.copy()
	return r
}

func (s *socket) report(r *Report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch s.state {
	case open, settling:
		r.Kept++
	case closed:
		r.Closed++
	case failed:
		r.Unopened++
	}
	c := &s.check
	if c.changed > 0 {
		r.Changed++
	}
	if c.pid != 0 {
		r.Versions[c.version]++
	}
	lost := c.lost(s.state == closed)
	r.MessagesSent += c.sent
	r.MessagesEchoed += c.echoed
	r.MessagesLost += lost
	r.MessagesDue += c.outstanding() - lost
	r.Doubled += c.doubled
	r.Reordered += c.reordered
	r.Miscounted += c.miscounted
	r.Wrong += c.wrong
	r.MessagesSkipped += s.skipped
	r.SlowestEcho = max(r.SlowestEcho, s.slowest)
}

// Err is nil if nobody noticed anything. It is meant for the report of Stop: in
// a snapshot, what is merely under way would be an error.
func (r Report) Err() error {
	var wrong []string
	say := func(n int64, what string) {
		if n != 0 {
			wrong = append(wrong, fmt.Sprintf("%d %s", n, what))
		}
	}
	say(int64(r.Total-r.Kept), fmt.Sprintf("of %d connections not kept", r.Total))
	if r.Held == Stays {
		say(int64(r.Changed), "connections changed process")
	}
	say(r.MessagesLost, "messages lost")
	say(r.MessagesDue, "messages without an echo in time")
	say(r.Doubled, "messages doubled")
	say(r.Reordered, "messages out of order")
	say(r.Miscounted, "messages miscounted by the server")
	say(r.Wrong, "answers to nothing that was sent")
	say(r.RequestsFailed, "requests failed")
	say(r.RequestsDue, "requests without an answer in time")
	if r.Aborted != "" {
		wrong = append(wrong, "aborted: "+r.Aborted)
	}
	if r.MessagesSent+r.RequestsOK == 0 && len(wrong) == 0 {
		return errNoLoad
	}
	if len(wrong) == 0 {
		return nil
	}
	text := "load: " + strings.Join(wrong, ", ")
	for _, n := range r.Errors {
		text += "\n  " + n.String()
	}
	return errors.New(text)
}

// String is the one line that sums it up.
func (r Report) String() string {
	return fmt.Sprintf("connections kept %d/%d · messages lost %d · requests failed %d",
		r.Kept, r.Total, r.MessagesLost+r.MessagesDue, r.RequestsFailed+r.RequestsDue)
}
