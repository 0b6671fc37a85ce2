package api

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// Version is the API's major version, the first element of every path.
const Version = 1

// Status is everything an operator wants to know of one service on one machine.
type Status struct {
	API         int          `json:"api"`
	Daemon      Daemon       `json:"daemon"`
	Service     string       `json:"service"`
	State       string       `json:"state"`        // one of the State constants
	Text        string       `json:"text"`         // the same in a sentence, as in systemctl status
	Committed   *release.Ref `json:"committed"`    // boots after a restart of the machine
	Previous    *release.Ref `json:"previous"`     // where a rollback goes to
	Generations []Generation `json:"generations"`  // serving first, then starting, then draining from new to old
	Listeners   []Listener   `json:"listeners"`    // in the order of the release
	Upgrade     *Upgrade     `json:"upgrade"`      // the one in flight
	Last        *Upgrade     `json:"last_upgrade"` // the one before
	Seq         uint64       `json:"seq"`          // of the newest event
}

// The states of a service.
const (
	StateEmpty    = "empty"    // no release was ever committed
	StateStarting = "starting" // the committed release is starting (boot, start, after a crash)
	StateServing  = "serving"
	StateCrashed  = "crashed" // waiting for the next restart; clients wait in the queue
	StateStopped  = "stopped" // by an operator
)

// Daemon is the supervisor itself.
type Daemon struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Systemd bool      `json:"systemd"`
	OS      string    `json:"os"`
	Arch    string    `json:"arch"`
	RSS     int64     `json:"rss_bytes"`
	Journal bool      `json:"journal"` // the app's output goes to the journal, not through /v1/logs
	Unit    string    `json:"unit"`    // its systemd unit, if any
	Adopted []string  `json:"adopted"` // what it went on with from a supervisor before it, and what of that was lost; a line each
	Bundles int       `json:"bundles"` // the version of bundles that it takes; zero: none
}

// Generation is one running instance of a release.
type Generation struct {
	Number      int         `json:"number"`
	Release     release.Ref `json:"release"`
	State       string      `json:"state"` // starting, soaking, serving, draining, stopping
	PID         int         `json:"pid"`
	Processes   int         `json:"processes"`
	Started     time.Time   `json:"started"`
	Ready       *time.Time  `json:"ready"`
	Draining    *time.Time  `json:"draining"`    // since when
	Deadline    *time.Time  `json:"deadline"`    // of the drain
	Connections int         `json:"connections"` // accepted on its listeners and still open, counted from the kernel; -1: unknown
	RSS         int64       `json:"rss_bytes"`   // of its whole process tree; -1: unknown
	Text        string      `json:"text"`        // its own STATUS=
	Health      string      `json:"health"`      // "", "ok", or why the last check failed
	Handoff     *Handoff    `json:"handoff"`     // how it gave its connections away, the last time; nil: it did not
	Taken       *Handoff    `json:"taken"`       // how it got connections of another, the last time; nil: it did not
}

// The states of a generation.
const (
	GenStarting = "starting"
	GenSoaking  = "soaking"
	GenServing  = "serving"
	GenDraining = "draining"
	GenStopping = "stopping"
)

// Listener is one listening socket.
type Listener struct {
	release.Listener
	Source string `json:"source"` // "bound" here or "systemd"
	Bound  string `json:"bound"`  // the actual address, for port 0
}

// ReleaseInfo is one complete release on the host.
type ReleaseInfo struct {
	release.Ref
	Bytes     int64      `json:"bytes"`
	Files     int        `json:"files"`
	Completed time.Time  `json:"completed"` // when it became complete on this host
	Committed *time.Time `json:"committed"` // when it was last committed
	State     string     `json:"state"`     // "", "committed", "previous", "draining"
}

// UploadPlan is the host's answer to a manifest: what it still needs.
type UploadPlan struct {
	Digest   string `json:"digest"`
	Complete bool   `json:"complete"` // the release is there already; nothing to send
	Dir      string `json:"dir"`      // absolute path on the host where each blob goes, named by its SHA256
	Missing  []Blob `json:"missing"`
	Reused   int64  `json:"reused_bytes"` // content that other releases on the host already have

	// For whoever sends a bundle; Missing is empty then.
	Lacks   []int            `json:"lacks,omitempty"`   // what is missing: numbers of files in the manifest
	Has     []string         `json:"has,omitempty"`     // digests of the releases on the host, the newest first
	Arrived map[string]int64 `json:"arrived,omitempty"` // bytes of interrupted bundles, by ID
}

// Blob is one content to send.
type Blob struct {
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
	Offset int64  `json:"offset"` // bytes that have arrived before
}

// The kinds of an upgrade.
const (
	KindPush         = "push"
	KindRollback     = "rollback"
	KindRestart      = "restart"
	KindStart        = "start"         // boot, or an operator's start
	KindAutoRollback = "auto-rollback" // it kept crashing soon after its upgrade
)

// UpgradeRequest asks for a release to serve.
type UpgradeRequest struct {
	Kind    string `json:"kind"`
	Version string `json:"version"` // empty: rollback to the previous, restart of the committed one
	Digest  string `json:"digest"`  // if set it must be that version's digest
	By      string `json:"by"`      // who asks, in words: shown to a second asker
}

// The phases of an upgrade, in order. Handoff is there only if both releases can move connections.
const (
	PhaseVerify  = "verify"
	PhaseStart   = "start"
	PhaseReady   = "ready"
	PhaseHandoff = "handoff"
	PhaseSoak    = "soak"
	PhaseCommit  = "commit"

	PhaseBack = "back" // after a failure: connections go back to the old release. No upgrade is in it, but it took its time
)

// Upgrade is one upgrade, in flight or ended.
type Upgrade struct {
	ID         string       `json:"id"`
	Kind       string       `json:"kind"`
	By         string       `json:"by"`
	To         release.Ref  `json:"to"`
	From       *release.Ref `json:"from"` // nil: nothing was serving
	Generation int          `json:"generation"`
	Started    time.Time    `json:"started"`
	Finished   *time.Time   `json:"finished"`
	Phase      string       `json:"phase"` // the one it is in, or ended in
	Phases     []PhaseTime  `json:"phases"`
	Outcome    Outcome      `json:"outcome"` // empty while in flight
	Error      *Error       `json:"error"`
	Handoff    *Handoff     `json:"handoff"`     // of the old release's connections; nil: they stayed where they were
	HandedBack *Handoff     `json:"handed_back"` // after a failure
}

// PhaseTime is how long one phase took.
type PhaseTime struct {
	Phase string        `json:"phase"`
	Took  time.Duration `json:"took_ns"`
	Text  string        `json:"text,omitempty"` // what came of it, in a line
}

// Handoff is what came of moving the connections of one generation to another.
type Handoff struct {
	From         int            `json:"from"` // generations
	To           int            `json:"to"`
	Took         time.Duration  `json:"took_ns"`
	Moved        int            `json:"moved"`
	Kept         map[string]int `json:"kept"`    // by reason
	Refused      int            `json:"refused"` // of those kept, how many the new release would not have
	LongestPause time.Duration  `json:"longest_pause_ns"`
	Error        string         `json:"error,omitempty"` // why it ended early
}

// Text is what came of it, in a line.
func (h *Handoff) Text() string {
	text := fmt.Sprintf("moved %d", h.Moved)
	kept := 0
	var reasons []string
	for _, why := range slices.Sorted(maps.Keys(h.Kept)) {
		kept += h.Kept[why]
		reasons = append(reasons, fmt.Sprintf("%s %d", why, h.Kept[why]))
	}
	why := strings.Join(reasons, ", ")
	if h.Refused > 0 && h.Refused != h.Kept["refused"] { // an app may have other words for it
		why += fmt.Sprintf("; refused by the new release %d", h.Refused)
	}
	if kept > 0 {
		text += fmt.Sprintf(", kept %d (%s)", kept, why)
	}
	if h.Moved > 0 {
		text += ", longest pause " + roundPause(h.LongestPause).String()
	}
	if h.Error != "" {
		text += ": " + h.Error
	}
	return text
}

func roundPause(d time.Duration) time.Duration {
	if d < 10*time.Millisecond {
		return d.Round(100 * time.Microsecond)
	}
	return d.Round(time.Millisecond)
}

// Event is one thing that happened. Seq grows by one from event to event of one daemon process.
type Event struct {
	Seq        uint64    `json:"seq"`
	Time       time.Time `json:"time"`
	Type       string    `json:"type"` // one of the Event constants
	Text       string    `json:"text"` // a line for people
	Upgrade    *Upgrade  `json:"upgrade,omitempty"`
	Generation int       `json:"generation,omitempty"`
	Handoff    *Handoff  `json:"handoff,omitempty"` // that has just ended
}

// The types of events.
const (
	EventUpgrade    = "upgrade"    // began, entered a phase, or ended: Upgrade tells which
	EventGeneration = "generation" // started, ready, draining, exited
	EventService    = "service"    // started, stopped, crashed
)

// StopRequest ends the service (every generation), or with Now set without waiting for connections.
type StopRequest struct {
	By  string `json:"by"`
	Now bool   `json:"now"`
}
