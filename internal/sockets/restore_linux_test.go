package sockets

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// What an earlier program bound is found again in a process that has it, and is the same socket.
func TestTakeAndRestore(t *testing.T) {
	dir := t.TempDir()
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "udp": "127.0.0.1:0", "unix": filepath.Join(dir, "app.sock")} {
		t.Run(network, func(t *testing.T) {
			s, err := Bind(release.Listener{Name: "web", Network: network, Address: address}, dir)
			if err != nil {
				t.Fatal(err)
			}
			r := s.Record()
			if (r.Path != 0) != (network == "unix") || r.Addr != s.Addr {
				t.Errorf("record %+v", r)
			}
			f, err := Take(os.Getpid(), r)
			if err != nil {
				t.Fatal(err)
			}
			again, err := Restore(f, r)
			if err != nil {
				t.Fatal(err)
			}
			if again.Record() != r {
				t.Errorf("it is %+v, was %+v", again.Record(), r)
			}
			s.File.Close() // as if the program that bound it had died
			if s.made != nil {
				s.made.Close()
			}
			if err := again.Close(); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(address); network == "unix" && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("its path is left: %v", err)
			}
			if _, err := Take(os.Getpid(), r); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("when nobody has it: %v", err)
			}
		})
	}
}

func TestRestore_AnotherSocket(t *testing.T) {
	s, err := Bind(release.Listener{Name: "web", Network: "tcp", Address: "127.0.0.1:0"}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for name, change := range map[string]func(*Record){
		"address": func(r *Record) { r.Addr = "127.0.0.1:1" },
		"network": func(r *Record) { r.Listener.Network = "udp" },
	} {
		r := s.Record()
		change(&r)
		if _, err := Restore(s.File, r); !errors.Is(err, ErrMismatch) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if _, err := Restore(null, s.Record()); err == nil {
		t.Error("a file is taken for a socket")
	}
}
