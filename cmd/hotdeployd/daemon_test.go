package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/supervisor"
)

// The test binary is also the daemon, and what that starts.
func TestMain(m *testing.M) {
	if os.Getenv("HOTDEPLOYD") == "1" || (len(os.Args) > 1 && os.Args[1] == "launch") {
		main()
	}
	os.Exit(m.Run())
}

// theDaemon is a real process, with folders of its own.
type theDaemon struct {
	t      *testing.T
	cmd    *exec.Cmd
	dir    string
	client *api.Client
	ended  chan error
}

// newDaemon prepares one; adapt may change what starts it.
func newDaemon(t *testing.T) *theDaemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "hd") // shorter than t.TempDir: a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		exec.Command("chmod", "-R", "u+w", dir).Run()
		os.RemoveAll(dir)
	})
	d := &theDaemon{t: t, dir: dir, ended: make(chan error, 1)}
	d.cmd = exec.Command("/proc/self/exe", "run", "--service", "echo", "--root", dir+"/root", "--run-dir", dir+"/run")
	d.cmd.Env = append(os.Environ(), "HOTDEPLOYD=1")
	d.client = api.NewClient(func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", supervisor.ControlSocket(dir+"/run"))
	})
	t.Cleanup(d.client.Close)
	return d
}

func (d *theDaemon) start() {
	d.t.Helper()
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	go func() { d.ended <- d.cmd.Wait() }()
	d.t.Cleanup(func() { d.cmd.Process.Kill() })
	for { // nothing tells when the socket is there
		if _, err := d.client.Status(d.t.Context()); err == nil {
			return
		}
		select {
		case err := <-d.ended:
			d.t.Fatalf("the daemon ended: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// stop tells it to end and returns how it did.
func (d *theDaemon) stop(sig os.Signal) error {
	d.t.Helper()
	if err := d.cmd.Process.Signal(sig); err != nil {
		d.t.Fatal(err)
	}
	select {
	case err := <-d.ended:
		return err
	case <-time.After(30 * time.Second):
		d.t.Fatal("it does not end")
		return nil
	}
}

// push makes a release of one shell script and waits until it serves.
func (d *theDaemon) push(version, script string) {
	d.t.Helper()
	src := d.t.TempDir()
	if err := os.WriteFile(filepath.Join(src, "run.sh"), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		d.t.Fatal(err)
	}
	spec := release.Spec{Run: release.Run{Command: []string{"./run.sh"}}}
	spec.Ready = release.Ready{Probe: release.Probe{Check: release.CheckDelay}, Delay: release.Duration(50 * time.Millisecond)}
	spec.SetDefaults()
	spec.Soak.Duration, spec.Run.StopAfter = 0, release.Duration(time.Second)
	spec.Restart.Backoff = release.Duration(time.Millisecond)
	ctx := d.t.Context()
	packed, err := release.Pack(ctx, release.PackOptions{Dir: src, Service: "echo", Version: version, Files: []string{"**"}, Spec: spec})
	if err != nil {
		d.t.Fatal(err)
	}
	plan, err := d.client.PlanUpload(ctx, packed.Bytes)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, b := range plan.Missing {
		content, err := packed.Open(b.SHA256)
		if err != nil {
			d.t.Fatal(err)
		}
		whole, err := io.ReadAll(content)
		content.Close()
		if err := errors.Join(err, os.WriteFile(filepath.Join(plan.Dir, b.SHA256), whole, 0o644)); err != nil {
			d.t.Fatal(err)
		}
	}
	if _, err := d.client.Complete(ctx, packed.Digest); err != nil {
		d.t.Fatal(err)
	}
	u, err := d.client.Upgrade(ctx, api.UpgradeRequest{Kind: api.KindPush, Version: version, By: "tester"})
	if err != nil {
		d.t.Fatal(err)
	}
	d.await(func(e api.Event) bool {
		return e.Upgrade != nil && e.Upgrade.ID == u.ID && e.Upgrade.Outcome == api.Done
	})
}

func (d *theDaemon) await(wanted func(api.Event) bool) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 20*time.Second)
	defer cancel()
	found := errors.New("found")
	if err := d.client.Events(ctx, 0, func(e api.Event) error {
		if wanted(e) {
			return found
		}
		return nil
	}); err != found {
		d.t.Fatal(err)
	}
}

// killApp kills the generation that serves.
func (d *theDaemon) killApp() {
	d.t.Helper()
	st, err := d.client.Status(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	serves := slices.IndexFunc(st.Generations, func(g api.Generation) bool { return g.State == api.GenServing })
	if serves < 0 {
		d.t.Fatalf("nothing serves: %+v", st.Generations)
	}
	if err := syscall.Kill(st.Generations[serves].PID, syscall.SIGKILL); err != nil {
		d.t.Fatal(err)
	}
}

func (d *theDaemon) awaitStarts(n int) {
	d.t.Helper()
	d.await(func(e api.Event) bool {
		if e.Upgrade != nil && e.Upgrade.Kind == api.KindStart && e.Upgrade.Outcome == api.Done {
			n--
		}
		return n == 0
	})
}

func TestRun_EndsInOrder(t *testing.T) {
	for _, sig := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		t.Run(sig.String(), func(t *testing.T) {
			d := newDaemon(t)
			var out bytes.Buffer
			d.cmd.Stdout, d.cmd.Stderr = &out, &out
			d.start()
			d.push("1", "echo the app speaks; exec sleep 100")
			st, err := d.client.Status(t.Context())
			if err != nil || st.State != api.StateServing {
				t.Fatalf("%+v, %v", st, err)
			}
			if err := d.stop(sig); err != nil {
				t.Errorf("%v", err)
			}
			if err := syscall.Kill(st.Generations[0].PID, 0); !errors.Is(err, syscall.ESRCH) {
				t.Errorf("the app: %v", err)
			}
			for _, want := range []string{"hotdeployd: 1 is serving (generation 1)\n", "the app speaks\n", "was killed by signal 15"} {
				if !strings.Contains(out.String(), want) {
					t.Errorf("%q is not in its output:\n%s", want, &out)
				}
			}
		})
	}
}

// hotdeployd run | head, a terminal that is gone, a journald that has crashed.
func TestRun_NobodyReadsItsOutputAnyMore_ItGoesOn(t *testing.T) {
	for name, hangUp := range map[string]bool{"hung up": true, "stopped to read": false} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t)
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			d.cmd.Stdout, d.cmd.Stderr = w, w
			d.start()
			w.Close()
			if hangUp {
				r.Close()
			}
			d.push("1", "exec yes 'a line of the app'")
			for starts := range 2 {
				d.killApp()
				d.awaitStarts(starts + 1)
			}
			if _, err := d.client.Status(t.Context()); err != nil {
				t.Error(err)
			}
			if err := d.stop(syscall.SIGTERM); err != nil {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestLog_NobodyReads_NobodyWaits(t *testing.T) {
	r, w := io.Pipe()
	l := newLogWriter(w)
	for i := range 3 * queuedLines {
		fmt.Fprintf(l, "line %d\n", i)
	}
	var got bytes.Buffer
	var reading sync.WaitGroup
	reading.Go(func() { io.Copy(&got, r) })
	l.Close()
	w.Close()
	reading.Wait()
	if !strings.Contains(got.String(), "\nline 1\n") || !strings.Contains(got.String(), " lines were lost here") {
		t.Errorf("%.200s", got.String())
	}
	fmt.Fprintln(l, "after the end") // somebody may still be at it
	stuck := newLogWriter(writerFunc(func([]byte) (int, error) { select {} }))
	fmt.Fprintln(stuck, "never written")
	stuck.Close()
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestRun_WhatCannotBeMeant(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "chat.toml")
	if err := os.WriteFile(file, []byte("service = \"chat\"\nroot = \""+dir+"/srv\"\nrun_dir = \""+dir+"/run\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(dir, "bad.toml")
	if err := os.WriteFile(bad, []byte("service = \"chat\"\nrot = \"/srv\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for args, says := range map[string]string{
		"run":                                "--config FILE or --service NAME",
		"run --config " + dir + "/none.toml": "none.toml",
		"run --config " + dir + "/none.toml --service chat --root " + dir: "none.toml", // named, so it must be there
		"run --config " + file + " --service other":                       "of the service chat, not other",
		"run --config " + bad:                          "bad.toml:2",
		"run --service ../../etc/passwd":               "a service's name",
		"run --service chat --root / --run-dir " + dir: "root",
		"run --service chat --root " + dir + " --run-dir " + dir + strings.Repeat("/long", 20): "run_dir",
		"run --service chat extra":            "extra",
		"run --serivce chat":                  "serivce",
		"dial":                                "--service NAME or --socket PATH",
		"dial --socket " + dir + "/none.sock": "none.sock",
		"nonsense":                            "nonsense",
	} {
		var stdout, stderr bytes.Buffer
		if status := run(t.Context(), strings.Fields(args), strings.NewReader(""), &stdout, &stderr); status != 1 || !strings.Contains(stderr.String(), says) || stdout.Len() > 0 {
			t.Errorf("%s: %d, %q, %q", args, status, &stdout, &stderr)
		}
	}
	if entries, _ := filepath.Glob(dir + "/srv*"); len(entries) > 0 {
		t.Errorf("made %v", entries)
	}
}

func TestRun_TwiceForOneService_SecondIsRefused(t *testing.T) {
	d := newDaemon(t)
	d.start()
	for what, args := range map[string][]string{
		"same root":          {"run", "--service", "echo", "--root", d.dir + "/root", "--run-dir", d.dir + "/run2"},
		"same run directory": {"run", "--service", "echo", "--root", d.dir + "/root2", "--run-dir", d.dir + "/run"},
	} {
		var stderr bytes.Buffer
		if status := run(t.Context(), args, strings.NewReader(""), io.Discard, &stderr); status != 1 {
			t.Errorf("%s: %d, %s", what, status, &stderr)
		}
	}
	if _, err := d.client.Status(t.Context()); err != nil {
		t.Errorf("the first one: %v", err)
	}
	if err := d.stop(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
}

func TestDial_CarriesARequest(t *testing.T) {
	d := newDaemon(t)
	d.start()
	in, typed := io.Pipe()
	answer, stdout := io.Pipe()
	status := make(chan int, 1)
	go func() {
		status <- run(t.Context(), []string{"dial", "--socket", supervisor.ControlSocket(d.dir + "/run")}, in, stdout, io.Discard)
		stdout.Close()
	}()
	fmt.Fprint(typed, "GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	b, err := io.ReadAll(answer)
	if err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 200 OK\r\n") {
		t.Errorf("%.100q, %v", b, err)
	}
	if got := <-status; got != 0 {
		t.Errorf("exit status %d", got)
	}
	typed.Close()
	if err := d.stop(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
}
