package release

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

func seconds(n int) Duration { return Duration(time.Duration(n) * time.Second) }

// goodSpec uses everything that a spec has.
func goodSpec() Spec {
	s := Spec{
		Run: Run{Command: []string{"bin/app"}, Env: map[string]string{"A": "b"}, RequireEnv: []string{"C"}, Shared: []string{"data"}},
		Listeners: []Listener{
			{Name: "http", Address: ":8080"},
			{Name: "admin", Network: "unix", Address: "admin.sock"},
			{Name: "dns", Network: "udp", Address: "[::1]:53"},
		},
		Ready:  Ready{Probe: Probe{Check: CheckHTTP}},
		Health: &Health{Probe: Probe{Check: CheckTCP}},
	}
	s.SetDefaults()
	return s
}

func TestSetDefaults_MakesASpecThatIsValid(t *testing.T) {
	s := goodSpec()
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	if s.Listeners[0].Network != "tcp" || s.Listeners[1].Mode != "0660" || s.Listeners[0].Mode != "" {
		t.Errorf("listeners %+v", s.Listeners)
	}
	if want := (Probe{Check: CheckHTTP, Listener: "http", Path: "/", Host: "localhost"}); !reflect.DeepEqual(s.Ready.Probe, want) {
		t.Errorf("ready %+v", s.Ready)
	}
	least := Spec{Run: Run{Command: []string{"bin/app"}}}
	least.SetDefaults()
	if err := least.Validate(); err != nil {
		t.Errorf("with a command alone: %v", err)
	}
	again := least
	again.SetDefaults()
	if !reflect.DeepEqual(again, least) {
		t.Errorf("a second time it changed %+v to %+v", least, again)
	}
}

func TestSpecValidate_NamesTheFieldAsInTOML(t *testing.T) {
	for _, c := range []struct {
		name  string
		wreck func(*Spec)
		want  string
	}{
		{"no command", func(s *Spec) { s.Run.Command = nil }, `run.command: must not be empty`},
		{"empty command", func(s *Spec) { s.Run.Command = []string{""} }, `run.command: must not be empty`},
		{"NUL in the command", func(s *Spec) { s.Run.Command = []string{"a", "b\x00"} }, `run.command[1]: "b\x00": has a NUL byte in it`},
		{"command not UTF-8", func(s *Spec) { s.Run.Command = []string{"a\xff"} }, `run.command[0]: "a\xff": is not valid UTF-8`},
		{"many arguments", func(s *Spec) { s.Run.Command = make([]string, 257); s.Run.Command[0] = "a" }, `run.command: has 257 arguments`},
		{"long argument", func(s *Spec) { s.Run.Command[0] = strings.Repeat("a", 5000) }, `run.command[0]: is longer than 4096 bytes`},
		{"variable's name", func(s *Spec) { s.Run.Env = map[string]string{"1A": ""} }, `run.env: "1A": a variable's name`},
		{"variable with =", func(s *Spec) { s.Run.Env = map[string]string{"A=B": ""} }, `run.env: "A=B": a variable's name`},
		{"variable of the contract", func(s *Spec) { s.Run.Env = map[string]string{"LISTEN_FDS": "3"} }, `run.env: "LISTEN_FDS": is set by hotdeploy`},
		{"NUL in a variable", func(s *Spec) { s.Run.Env = map[string]string{"A": "\x00"} }, `run.env.A: "\x00": has a NUL`},
		{"required twice", func(s *Spec) { s.Run.RequireEnv = []string{"A", "A"} }, `run.require_env[1]: "A": comes twice`},
		{"required of the contract", func(s *Spec) { s.Run.RequireEnv = []string{"NOTIFY_SOCKET"} }, `run.require_env[0]: "NOTIFY_SOCKET": is set by`},
		{"shared climbs", func(s *Spec) { s.Run.Shared = []string{"../x"} }, `run.shared[0]: "../x": has ".." in it`},
		{"shared absolute", func(s *Spec) { s.Run.Shared = []string{"/x"} }, `run.shared[0]: "/x": is absolute`},
		{"shared is everything", func(s *Spec) { s.Run.Shared = []string{"."} }, `run.shared[0]: ".": is the release itself: name something in it`},
		{"shared in shared", func(s *Spec) { s.Run.Shared = []string{"a", "a/b"} }, `run.shared[1]: "a/b": is the same as "a", or one is inside`},
		{"no time to stop", func(s *Spec) { s.Run.StopAfter = 0 }, `run.stop_timeout: must be positive`},

		{"listener's name", func(s *Spec) { s.Listeners[0].Name = "HTTP" }, `listen[0].name: "HTTP": has 1 to 64`},
		{"listener's name with a colon", func(s *Spec) { s.Listeners[0].Name = "a:b" }, `listen[0].name: "a:b"`},
		{"listeners of one name", func(s *Spec) { s.Listeners[1].Name = "http" }, `listen[1].name: "http": another listener has that name`},
		{"network", func(s *Spec) { s.Listeners[0].Network = "sctp" }, `listen[0].network: "sctp": must be one of tcp, tcp4, tcp6, udp, unix`},
		{"no port", func(s *Spec) { s.Listeners[0].Address = "localhost" }, `listen[0].address: "localhost": must be host:port`},
		{"port too high", func(s *Spec) { s.Listeners[0].Address = ":65536" }, `listen[0].address: ":65536": the port must be a number from 0 to 65535`},
		{"port with a name", func(s *Spec) { s.Listeners[0].Address = ":http" }, `the port must be a number`},
		{"port written oddly", func(s *Spec) { s.Listeners[0].Address = ":0080" }, `the port must be a number`},
		{"host", func(s *Spec) { s.Listeners[0].Address = "a b:80" }, `the host must be an IP address or a name`},
		{"v6 for tcp4", func(s *Spec) { s.Listeners[0] = Listener{Name: "x", Network: "tcp4", Address: "[::1]:80"} }, `is not one for tcp4`},
		{"v4 for tcp6", func(s *Spec) { s.Listeners[0] = Listener{Name: "x", Network: "tcp6", Address: "[::ffff:1.2.3.4]:80"} }, `is not one for tcp6`},
		{"one address twice", func(s *Spec) { s.Listeners[1] = Listener{Name: "x", Network: "tcp", Address: ":8080"} }, `listen[1].address: ":8080": listener "http" has that address`},
		{"socket climbs", func(s *Spec) { s.Listeners[1].Address = "../x.sock" }, `listen[1].address: "../x.sock": must be clean, without ".."`},
		{"absolute socket climbs", func(s *Spec) { s.Listeners[1].Address = "/run/../x.sock" }, `must be clean`},
		{"abstract socket", func(s *Spec) { s.Listeners[1].Address = "@x" }, `abstract sockets are not supported`},
		{"long socket", func(s *Spec) { s.Listeners[1].Address = "/" + strings.Repeat("a", 107) }, `is longer than 107 bytes`},
		{"no socket", func(s *Spec) { s.Listeners[1].Address = "" }, `listen[1].address: "": must be the socket's path`},
		{"socket with NUL", func(s *Spec) { s.Listeners[1].Address = "a\x00b" }, `has a NUL byte`},
		{"mode", func(s *Spec) { s.Listeners[1].Mode = "999" }, `listen[1].mode: "999": must be octal`},
		{"setuid", func(s *Spec) { s.Listeners[1].Mode = "4755" }, `listen[1].mode: "4755": must be octal`},
		{"mode for tcp", func(s *Spec) { s.Listeners[0].Mode = "0600" }, `listen[0].mode: "0600": is only for network = "unix"`},
		{"many listeners", func(s *Spec) { s.Listeners = make([]Listener, 65) }, `listen: 65 of them`},

		{"no check", func(s *Spec) { s.Ready.Check = "" }, `ready.check: "": must be one of notify, tcp, http, command, delay`},
		{"timeout", func(s *Spec) { s.Ready.Timeout = 0 }, `ready.timeout: must be positive`},
		{"long timeout", func(s *Spec) { s.Ready.Timeout = seconds(3601) }, `ready.timeout: 1h0m1s: must be at most 1h0m0s`},
		{"delay without one", func(s *Spec) { s.Ready = Ready{Probe: Probe{Check: CheckDelay}, Timeout: 1} }, `ready.delay: must be positive with check = "delay"`},
		{"delay beyond the timeout", func(s *Spec) { s.Ready = Ready{Probe: Probe{Check: CheckDelay}, Timeout: 1, Delay: 1} }, `ready.delay: 1ns: must be shorter than ready.timeout`},
		{"delay for nothing", func(s *Spec) { s.Ready.Delay = 1 }, `ready.delay: is only for check = "delay"`},
		{"command check without one", func(s *Spec) { s.Ready.Probe = Probe{Check: CheckCommand} }, `ready.command: must not be empty`},
		{"command for nothing", func(s *Spec) { s.Ready.Command = []string{"x"} }, `ready.command: is only for check = "command"`},
		{"path for nothing", func(s *Spec) { s.Ready.Probe = Probe{Check: CheckNotify, Path: "/"} }, `ready.path: is only for check = "http"`},
		{"host for nothing", func(s *Spec) { s.Ready.Probe = Probe{Check: CheckTCP, Host: "a"} }, `ready.host: is only for check = "http"`},
		{"listener for nothing", func(s *Spec) { s.Ready.Probe = Probe{Check: CheckNotify, Listener: "http"} }, `ready.listener: is only for check = "tcp" or "http"`},
		{"unknown listener", func(s *Spec) { s.Ready.Listener = "nope" }, `ready.listener: "nope": no [[listen]] with that name`},
		{"a udp listener", func(s *Spec) { s.Ready.Listener = "dns" }, `ready.listener: "dns": no [[listen]] with that name takes connections`},
		{"no listener at all", func(s *Spec) { s.Listeners = nil; s.Ready.Listener = "" }, `ready.check: "http": needs a [[listen]] that takes connections`},
		{"path", func(s *Spec) { s.Ready.Path = "healthz" }, `ready.path: "healthz": must begin with /`},
		{"path with a line end", func(s *Spec) { s.Ready.Path = "/a\r\nX: y" }, `ready.path: "/a\r\nX: y": must begin with / and have no spaces`},
		{"host with a line end", func(s *Spec) { s.Ready.Host = "a\r\nX: y" }, `ready.host: "a\r\nX: y": must be a host's name`},
		{"health by notify", func(s *Spec) { s.Health.Check = CheckNotify }, `health.check: "notify": must be one of tcp, http, command`},
		{"health's interval", func(s *Spec) { s.Health.Interval = 0 }, `health.interval: must be positive`},
		{"health's timeout", func(s *Spec) { s.Health.Timeout = -1 }, `health.timeout: must be positive`},
		{"health's failures", func(s *Spec) { s.Health.Failures = 0 }, `health.failures: 0: must be 1 to 1000`},

		{"soak", func(s *Spec) { s.Soak.Duration = -1 }, `soak.duration: must not be negative`},
		{"max age", func(s *Spec) { s.Drain.MaxAge = Duration(367 * day) }, `drain.max_age: 8808h0m0s: must be at most`},
		{"generations", func(s *Spec) { s.Drain.MaxGenerations = -1 }, `drain.max_generations: -1: must be 0 to 1000`},
		{"spread", func(s *Spec) { s.Drain.Spread = -1 }, `drain.spread: must not be negative`},
		{"backoff", func(s *Spec) { s.Restart.Backoff = 0 }, `restart.backoff: must be positive`},
		{"backoffs", func(s *Spec) { s.Restart.MaxBackoff = 1 }, `restart.max_backoff: 1ns: must not be shorter than restart.backoff`},
		{"crashes", func(s *Spec) { s.Restart.Crashes = 1001 }, `restart.crashes: 1001: must be 0 to 1000`},
		{"window", func(s *Spec) { s.Restart.Window = 0 }, `restart.window: must be positive`},
		{"keep", func(s *Spec) { s.Releases.Keep = -1 }, `releases.keep: -1: must be 0 to 1000`},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := goodSpec()
			c.wreck(&s)
			err := s.Validate()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}

func TestSpecValidate_TakesWhatIsRight(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Spec)
	}{
		{"no limits", func(s *Spec) { s.Drain = Drain{}; s.Soak = Soak{}; s.Restart.Crashes = 0; s.Releases.Keep = 0 }},
		{"delay", func(s *Spec) {
			s.Ready = Ready{Probe: Probe{Check: CheckDelay}, Timeout: seconds(2), Delay: seconds(1)}
		}},
		{"command", func(s *Spec) { s.Ready.Probe = Probe{Check: CheckCommand, Command: []string{"true"}} }},
		{"any port, twice", func(s *Spec) {
			s.Listeners[0].Address = "127.0.0.1:0"
			s.Listeners[1] = Listener{Name: "b", Network: "tcp", Address: "127.0.0.1:0"}
		}},
		{"tcp and udp at one port", func(s *Spec) { s.Listeners[2] = Listener{Name: "b", Network: "udp", Address: ":8080"} }},
		{"an address with a zone", func(s *Spec) { s.Listeners[0].Address = "[fe80::1%eth0]:80" }},
		{"a host's name", func(s *Spec) { s.Listeners[0].Address = "localhost:80" }},
		{"an absolute socket", func(s *Spec) { s.Listeners[1].Address = "/run/x/y.sock" }},
		{"a mode of three digits", func(s *Spec) { s.Listeners[1].Mode = "666" }},
		{"not resolved", func(s *Spec) { s.Ready.Probe = Probe{Check: CheckHTTP} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := goodSpec()
			c.change(&s)
			if err := s.Validate(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestInvalidError_IsBoundedAndCanBeTakenApart(t *testing.T) {
	s := goodSpec()
	s.Run.Env = map[string]string{}
	for i := range 50 {
		s.Run.Env[strings.Repeat("-", i+1)] = ""
	}
	err := s.Validate()
	var invalid *InvalidError
	if !errors.As(err, &invalid) || len(invalid.Problems) != maxProblems || invalid.More != 40 {
		t.Fatalf("got %v", err)
	}
	var field *FieldError
	if !errors.As(err, &field) || field.Field != "run.env" {
		t.Errorf("got %v", field)
	}
	if !strings.HasSuffix(err.Error(), "; and 40 more") {
		t.Errorf("got %v", err)
	}
}

func TestDuration_SaysHowToWriteIt(t *testing.T) {
	var d Duration
	if err := d.UnmarshalText([]byte("30")); err == nil || !strings.Contains(err.Error(), `"30": not a duration: write it with its unit, as in "30s"`) {
		t.Errorf("got %v", err)
	}
	if err := d.UnmarshalText([]byte("1m30s")); err != nil || d != seconds(90) {
		t.Errorf("got %v, %v", d, err)
	}
}

func TestPerm(t *testing.T) {
	for mode, want := range map[string]uint32{"": 0o660, "0600": 0o600, "777": 0o777, "x": 0o660} {
		if got := (Listener{Mode: mode}).Perm(); uint32(got) != want {
			t.Errorf("%q: %o, want %o", mode, got, want)
		}
	}
}
