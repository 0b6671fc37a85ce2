package config

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestDaemon_WhatSetupWritesTheDaemonReads(t *testing.T) {
	for _, d := range []*Daemon{
		NewDaemon("chat"),
		{Service: "chat", Root: "/opt/\"odd\" näme", RunDir: "/tmp/run", User: "svc"},
	} {
		b, err := d.Encode()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "chat.toml")
		write(t, path, string(b))
		got, err := LoadDaemon(path)
		if err != nil || !reflect.DeepEqual(got, d) {
			t.Errorf("got %+v, %v; want %+v", got, err, d)
		}
	}
}

func TestParseDaemon_HasDefaults(t *testing.T) {
	got, err := ParseDaemon("chat.toml", []byte(`service = "chat"`))
	want := &Daemon{Service: "chat", Root: "/srv/chat", RunDir: "/run/chat"}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestParseDaemon_RefusesWhatIsNotRight(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"nothing", ``, `d.toml: service: "": a service's name`},
		{"a service that climbs", `service = "../x"`, `d.toml:1: service: "../x": a service's name`},
		{"unknown key", "service = \"a\"\nroots = \"/x\"", `d.toml:2: roots: unknown key: did you mean root?`},
		{"relative", "service = \"a\"\nroot = \"srv\"", `d.toml:2: root: "srv": must be an absolute path`},
		{"the whole machine", "service = \"a\"\nroot = \"/\"", `d.toml:2: root: "/": must be an absolute path below /`},
		{"climbs", "service = \"a\"\nrun_dir = \"/run/../x\"", `d.toml:2: run_dir: "/run/../x": is not clean: write "/x"`},
		{"long", "service = \"a\"\nrun_dir = \"/run/" + strings.Repeat("x", 80) + "\"", `longer than 80 bytes`},
		{"NUL", "service = \"a\"\nroot = \"/a\\u0000b\"", `has control characters`},
		{"user", "service = \"a\"\nuser = \"a b\"", `d.toml:2: user: "a b": must be a user's name`},
		{"type", "service = 3", `d.toml:1: service: must be a string, not an integer`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseDaemon("d.toml", []byte(c.text))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
	if _, err := (&Daemon{Service: "a"}).Encode(); err == nil {
		t.Error("a Daemon without a root was written")
	}
}
