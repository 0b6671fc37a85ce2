package release

import (
	"fmt"
	"time"
)

// Spec is how a release wants to be run. It is written in hotdeploy.toml, travels in the manifest and is obeyed by the
// supervisor: one struct with one Validate for both sides.
type Spec struct {
	Run       Run        `toml:"run" json:"run"`
	Listeners []Listener `toml:"listen" json:"listen,omitempty"`
	Ready     Ready      `toml:"ready" json:"ready"`
	Health    *Health    `toml:"health" json:"health,omitempty"`
	Soak      Soak       `toml:"soak" json:"soak"`
	Drain     Drain      `toml:"drain" json:"drain"`
	Restart   Restart    `toml:"restart" json:"restart"`
	Releases  Retention  `toml:"releases" json:"releases"`
}

// Run is the process to start.
type Run struct {
	// Command is the start command. Command[0] with a slash in it is a path inside the release ("bin/chat", "./run.sh"), or absolute
	// on the host; without one it is looked up in the release's PATH on the host ("node").
	Command    []string          `toml:"command" json:"command"`
	Env        map[string]string `toml:"env" json:"env,omitempty"`
	RequireEnv []string          `toml:"require_env" json:"require_env,omitempty"` // names that the host's env file must set
	Shared     []string          `toml:"shared" json:"shared,omitempty"`           // paths in the release that live in shared/ across releases
	StopAfter  Duration          `toml:"stop_timeout" json:"stop_timeout"`         // SIGTERM to SIGKILL when the service is stopped
}

// Listener is one socket that the supervisor owns and the app inherits.
type Listener struct {
	Name    string `toml:"name" json:"name"`           // its LISTEN_FDNAMES entry
	Network string `toml:"network" json:"network"`     // tcp (default), tcp4, tcp6, unix, udp
	Address string `toml:"address" json:"address"`     // host:port, or a path for unix
	Mode    string `toml:"mode" json:"mode,omitempty"` // unix only: octal permissions, default 0660
}

// How a new generation tells that it is ready.
const (
	CheckNotify  = "notify"  // READY=1 on NOTIFY_SOCKET
	CheckTCP     = "tcp"     // it accepts on its listener
	CheckHTTP    = "http"    // it answers 2xx or 3xx
	CheckCommand = "command" // a command in the release exits 0
	CheckDelay   = "delay"   // it lived this long: the last resort
)

// Probe is what Ready and Health have in common.
type Probe struct {
	Check    string   `toml:"check" json:"check"`
	Listener string   `toml:"listener" json:"listener,omitempty"` // tcp, http: which listener; default the first
	Path     string   `toml:"path" json:"path,omitempty"`         // http: request path; default /
	Host     string   `toml:"host" json:"host,omitempty"`         // http: Host header; default localhost
	Command  []string `toml:"command" json:"command,omitempty"`   // command
}

// Ready is the readiness check of a starting generation.
type Ready struct {
	Probe
	Timeout Duration `toml:"timeout" json:"timeout"`       // for the whole start
	Delay   Duration `toml:"delay" json:"delay,omitempty"` // check = "delay"
}

// Health is the check during the soak: tcp, http or command.
type Health struct {
	Probe
	Interval Duration `toml:"interval" json:"interval"`
	Timeout  Duration `toml:"timeout" json:"timeout"`   // of one check
	Failures int      `toml:"failures" json:"failures"` // in a row, until it counts as unhealthy
}

// Soak is how long a new generation must stay up and healthy before it is committed.
type Soak struct {
	Duration Duration `toml:"duration" json:"duration"`
}

// Drain is how long old generations may live on.
type Drain struct {
	MaxAge         Duration `toml:"max_age" json:"max_age"`                 // since it began to drain; 0: no limit
	MaxGenerations int      `toml:"max_generations" json:"max_generations"` // draining at once; the oldest is ended first; 0: no limit
	Spread         Duration `toml:"spread" json:"spread"`                   // what is left at the end is closed over this time
}

// Restart is what happens when the serving generation ends by itself.
type Restart struct {
	Backoff    Duration `toml:"backoff" json:"backoff"`         // before the first restart, doubled for each further one
	MaxBackoff Duration `toml:"max_backoff" json:"max_backoff"` // at most
	Crashes    int      `toml:"crashes" json:"crashes"`         // that many within Window of an upgrade: back to the release before
	Window     Duration `toml:"window" json:"window"`
}

// Retention is how many releases stay on the host besides those in use.
type Retention struct {
	Keep int `toml:"keep" json:"keep"`
}

// Defaults: what an unset value means. Times are short enough for a human who waits and long enough for a slow start.
const (
	DefaultReadyTimeout   = Duration(30 * time.Second)
	DefaultStopTimeout    = Duration(30 * time.Second)
	DefaultSoak           = Duration(10 * time.Second)
	DefaultHealthInterval = Duration(time.Second)
	DefaultHealthTimeout  = Duration(2 * time.Second)
	DefaultHealthFailures = 3
	DefaultDrainMaxAge    = Duration(24 * time.Hour)
	DefaultDrainMax       = 8
	DefaultDrainSpread    = Duration(30 * time.Second)
	DefaultBackoff        = Duration(200 * time.Millisecond)
	DefaultMaxBackoff     = Duration(30 * time.Second)
	DefaultCrashes        = 3
	DefaultCrashWindow    = Duration(5 * time.Minute)
	DefaultKeep           = 5
)

// Duration is a time.Duration that is written as "30s" in TOML and JSON.
type Duration time.Duration

// MarshalText writes d as time.Duration does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf(`%s: not a duration: write it with its unit, as in "30s", "1m30s" or "24h"`, quote(string(b)))
	}
	*d = Duration(v)
	return nil
}

func (d Duration) String() string { return time.Duration(d).String() }
