package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

const whole = `
service = "chat"
[pack]
files = ["bin/chat", "public/**"]
exclude = ["**/*.map"]
[run]
command = ["bin/chat", "-v"]
env = { LOG_LEVEL = "info" }
require_env = ["DATABASE_URL"]
shared = ["uploads"]
stop_timeout = "45s"
[[listen]]
name = "http"
network = "tcp4"
address = ":8080"
[[listen]]
name = "admin"
network = "unix"
address = "admin.sock"
mode = "0600"
[ready]
check = "http"
timeout = "1m"
listener = "admin"
path = "/ready"
host = "chat.example"
[health]
check = "tcp"
interval = "2s"
timeout = "1s"
failures = 5
[soak]
duration = "20s"
[drain]
max_age = "48h"
max_generations = 3
spread = "1m"
[restart]
backoff = "1s"
max_backoff = "1m"
crashes = 2
window = "10m"
[releases]
keep = 7
[targets.production]
hosts = ["web-1", "deploy@web-2:2222"]
socket = "/run/chat/other.sock"
`

func TestParse_TakesEveryKey(t *testing.T) {
	p, err := Parse("hotdeploy.toml", []byte(whole))
	if err != nil {
		t.Fatal(err)
	}
	sec := func(n int) release.Duration { return release.Duration(time.Duration(n) * time.Second) }
	want := &Project{
		Service: "chat",
		Pack:    Pack{[]string{"bin/chat", "public/**"}, []string{"**/*.map"}},
		Spec: release.Spec{
			Run: release.Run{
				Command: []string{"bin/chat", "-v"}, Env: map[string]string{"LOG_LEVEL": "info"},
				RequireEnv: []string{"DATABASE_URL"}, Shared: []string{"uploads"}, StopAfter: sec(45),
			},
			Listeners: []release.Listener{{Name: "http", Network: "tcp4", Address: ":8080"}, {Name: "admin", Network: "unix", Address: "admin.sock", Mode: "0600"}},
			Ready:     release.Ready{Probe: release.Probe{Check: "http", Listener: "admin", Path: "/ready", Host: "chat.example"}, Timeout: sec(60)},
			Health:    &release.Health{Probe: release.Probe{Check: "tcp", Listener: "http"}, Interval: sec(2), Timeout: sec(1), Failures: 5},
			Soak:      release.Soak{Duration: sec(20)},
			Drain:     release.Drain{MaxAge: sec(48 * 3600), MaxGenerations: 3, Spread: sec(60)},
			Restart:   release.Restart{Backoff: sec(1), MaxBackoff: sec(60), Crashes: 2, Window: sec(600)},
			Releases:  release.Retention{Keep: 7},
		},
		Targets: map[string]Target{"production": {[]string{"web-1", "deploy@web-2:2222"}, "/run/chat/other.sock"}},
	}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("got  %+v\nwant %+v", p, want)
	}
}

const least = "service = \"chat\"\n[pack]\nfiles = [\"bin/chat\"]\n[run]\ncommand = [\"bin/chat\"]\n"

func TestParse_WhatIsUnsetHasItsDefault(t *testing.T) {
	p, err := Parse("hotdeploy.toml", []byte(least))
	if err != nil {
		t.Fatal(err)
	}
	want := release.Spec{Run: release.Run{Command: []string{"bin/chat"}}}
	want.SetDefaults()
	if !reflect.DeepEqual(p.Spec, want) {
		t.Errorf("got  %+v\nwant %+v", p.Spec, want)
	}
}

func TestParse_ZeroIsNotUnset(t *testing.T) {
	p, err := Parse("hotdeploy.toml", []byte(least+"[drain]\nmax_age = \"0s\"\nmax_generations = 0\n[soak]\nduration = \"0s\"\n[restart]\ncrashes = 0\n"))
	if err != nil {
		t.Fatal(err)
	}
	if p.Drain.MaxAge != 0 || p.Drain.MaxGenerations != 0 || p.Soak.Duration != 0 || p.Restart.Crashes != 0 || p.Drain.Spread == 0 {
		t.Errorf("got %+v %+v %+v", p.Drain, p.Soak, p.Restart)
	}
}

func TestParse_HealthHasDefaultsOnlyIfItIsThere(t *testing.T) {
	p, err := Parse("hotdeploy.toml", []byte(least+"[[listen]]\nname = \"http\"\naddress = \":80\"\n[health]\ncheck = \"http\"\nfailures = 9\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := &release.Health{
		Probe:    release.Probe{Check: "http", Listener: "http", Path: "/", Host: "localhost"},
		Interval: release.DefaultHealthInterval, Timeout: release.DefaultHealthTimeout, Failures: 9,
	}
	if !reflect.DeepEqual(p.Health, want) {
		t.Errorf("got %+v, want %+v", p.Health, want)
	}
}

// Each mistake is added to a file that is right otherwise, which has 5 lines.
func TestParse_NamesFileLineAndKey(t *testing.T) {
	for _, c := range []struct{ name, add, want string }{
		{"unknown key", "[soak]\ndurations = \"1s\"", `x.toml:7: soak.durations: unknown key: did you mean duration?`},
		{"unknown table", "[drian]\nmax_age = \"1s\"", `x.toml:6: drian: unknown key: did you mean drain?`},
		{"key of another table", "[soak]\nmax_age = \"1s\"", `x.toml:7: soak.max_age: unknown key: did you mean max_age in [drain]?`},
		{"key of the top", "service = \"a\"", `x.toml:6: run.service: unknown key: it belongs at the top, before the first [table]`},
		{"another case", "[soak]\nDuration = \"1s\"", `x.toml:7: soak.Duration: unknown key: did you mean duration?`},
		{"in an inline table", "[ready]\ncheck = \"notify\"\n[targets]\na = { hosts = [\"h\"],\n  port = 3 }", `x.toml:10: targets.a.port: unknown key`},
		{"in an array of tables", "[[listen]]\nname = \"a\"\naddress = \":1\"\n[[listen]]\nname = \"b\"\naddres = \":2\"", `x.toml:11: listen[1].addres: unknown key: did you mean address?`},
		{"dotted", "[soak]\n[ready]\n[drain]\n[health]\ncheck.x = 1", `x.toml:10: health.check: must be a string, not a table`},
		{"not a duration", "[soak]\nduration = \"10\"", `x.toml:7: soak.duration: "10": not a duration: write it with its unit`},
		{"a number for a duration", "[soak]\nduration = 10", `x.toml:7: soak.duration: must be a duration with its unit in quotes`},
		{"not a number", "[releases]\nkeep = \"3\"", `x.toml:7: releases.keep: must be an integer, not a string`},
		{"a float", "[releases]\nkeep = 3.5", `x.toml:7: releases.keep: must be an integer, not a float`},
		{"a date", "[releases]\nkeep = 2001-01-01", `x.toml:7: releases.keep: must be an integer, not a date or time`},
		{"a table for an array of tables", "[listen]\nname = \"a\"", `x.toml:6: listen: must be an array of tables: write [[listen]], not a table`},
		{"an array for a table", "[[soak]]\nduration = \"1s\"", `x.toml:6: soak: must be a table, not an array`},
		{"a variable that is no string", "[run.env]\nPORT = 80", `x.toml:7: run.env.PORT: must be a string, not an integer`},
		{"out of range", "[soak]\n\nduration = \"-1s\"", `x.toml:8: soak.duration: must not be negative`},
		{"an entry of a list", "shared = [\n\"a\",\n\"../b\"]", `x.toml:8: run.shared[1]: "../b": has ".." in it`},
		{"what is missing has its table's line", "[ready]\ncheck = \"delay\"", `x.toml:6: ready.delay: must be positive`},
		{"a target without hosts", "[targets.prod]", `x.toml:6: targets.prod.hosts: is empty`},
		{"a target's name", "[targets.\"a b\"]\nhosts = [\"x\"]", `x.toml:6: targets."a b": a target's name has`},
		{"a host like an option", "[targets.prod]\nhosts = [\"-oProxyCommand=x\"]", `x.toml:7: targets.prod.hosts[0]: "-oProxyCommand=x": a host does not begin with -`},
		{"a host twice", "[targets.prod]\nhosts = [\"a\", \"a\"]", `x.toml:7: targets.prod.hosts[1]: "a": comes twice`},
		{"a relative socket", "[targets.prod]\nhosts = [\"a\"]\nsocket = \"x.sock\"", `x.toml:8: targets.prod.socket: "x.sock": must be a clean absolute path`},
		{"no TOML", "[soak", `x.toml:6: `},
		{"a key twice", "command = [\"b\"]", `x.toml:6: `},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse("x.toml", []byte(least+c.add+"\n"))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}

func TestParse_TellsAllMistakesAtOnceUpToTen(t *testing.T) {
	_, err := Parse("x.toml", []byte("service = \"Chat\"\nfoo = 1\n[run]\ncommand = []\n[soak]\nduration = \"-1s\"\n"))
	var e *Error
	if !errors.As(err, &e) || len(e.Problems) != 5 {
		t.Fatalf("want an Error with 5 problems, got %v", err)
	}
	if !slices.IsSortedFunc(e.Problems, func(a, b Problem) int { return a.Line - b.Line }) {
		t.Errorf("not in the order of lines: %v", err)
	}
	var many strings.Builder
	for range 200 {
		many.WriteString("[[listen]]\nfoo = 1\n")
	}
	_, err = Parse("x.toml", []byte(many.String()))
	if !errors.As(err, &e) || len(e.Problems) != 10 || e.More < 190 {
		t.Errorf("want 10 problems and the number of the others, got %v", err)
	}
}

func TestParse_ALongFileIsRefused(t *testing.T) {
	if _, err := Parse("x.toml", make([]byte, MaxFileBytes+1)); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("got %v", err)
	}
	for _, s := range []string{"a = " + strings.Repeat("[", 100_000), "a = " + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000)} {
		if _, err := Parse("x.toml", []byte(s)); err == nil {
			t.Error("deep nesting was taken")
		}
	}
}

func TestFind_LooksUpToTheRepository(t *testing.T) {
	top := t.TempDir()
	repo := filepath.Join(top, "repo")
	deep := filepath.Join(repo, "a", "b")
	for _, d := range []string{deep, filepath.Join(repo, ".git")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(top, FileName), least)
	if _, err := Find(deep); !errors.Is(err, ErrNoProject) {
		t.Errorf("above the repository: got %v, want ErrNoProject", err)
	}
	want := filepath.Join(repo, FileName)
	write(t, want, least)
	if got, err := Find(deep); err != nil || got != want {
		t.Errorf("got %s, %v; want %s", got, err, want)
	}
	p, err := Load(want)
	if err != nil || p.Dir != repo {
		t.Errorf("got %+v, %v", p, err)
	}
	if _, err := Load(filepath.Join(deep, FileName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestHosts(t *testing.T) {
	one := &Project{Targets: map[string]Target{"production": {Hosts: []string{"web-1", "web-2"}}}}
	two := &Project{Targets: map[string]Target{"production": {Hosts: []string{"web-1"}}, "staging": {Hosts: []string{"s"}}}}
	for _, c := range []struct {
		name    string
		p       *Project
		arg     string
		want    []string
		wantErr string
	}{
		{"a target", one, "production", []string{"web-1", "web-2"}, ""},
		{"a host", one, "deploy@web-9:2222", []string{"deploy@web-9:2222"}, ""},
		{"the only target", one, "", []string{"web-1", "web-2"}, ""},
		{"several targets", two, "", nil, "say which one: production, staging"},
		{"no target", &Project{}, "", nil, "no target: name a host"},
		{"no project", nil, "web-1", []string{"web-1"}, ""},
		{"an option", one, "-oProxyCommand=x", nil, "does not begin with -"},
		{"an option as host", one, "a@-x", nil, "does not begin with -"},
		{"no host", one, "a@", nil, "must be a host"},
		{"no user", one, "@a", nil, "must be a host"},
		{"a space", one, "a b", nil, "no spaces"},
		{"an escape", one, "a\x1b[2J", nil, "no spaces or control"},
		{"long", one, strings.Repeat("a", 513), nil, "longer than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.p.Hosts(c.arg)
			if c.wantErr == "" && (err != nil || !reflect.DeepEqual(got, c.want)) {
				t.Errorf("got %v, %v", got, err)
			}
			if c.wantErr != "" && (err == nil || !strings.Contains(err.Error(), c.wantErr)) {
				t.Errorf("got %v, want %s", err, c.wantErr)
			}
		})
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
