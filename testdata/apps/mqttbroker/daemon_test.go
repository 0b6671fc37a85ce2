package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// patience is how long a test waits for what must come.
const patience = time.Minute

// daemon is a hotdeployd that runs brokers, both real processes.
type daemon struct {
	t      *testing.T
	dir    string
	addr   string // of the broker
	broken string // what its releases do wrong on purpose
	output *output
	client *api.Client
	last   int // version
}

// build makes both programs once; with the race detector if the test has it.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "mqttbroker")
	if err != nil {
		return "", err
	}
	for _, step := range []struct {
		in   string
		args []string
	}{{"../../..", []string{"build", "-o", dir, "./cmd/hotdeployd"}}, {".", append([]string{"build", "-o", dir}, raceFlags...)}} {
		cmd := exec.Command("go", step.args...)
		cmd.Dir = step.in
		if text, err := cmd.CombinedOutput(); err != nil {
			return dir, fmt.Errorf("go %v: %w\n%s", step.args, err, text)
		}
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	status := m.Run()
	if dir, _ := build(); dir != "" {
		os.RemoveAll(dir)
	}
	os.Exit(status)
}

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "hd") // shorter than t.TempDir: a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		exec.Command("chmod", "-R", "u+w", dir).Run()
		os.RemoveAll(dir)
	})
	d := &daemon{t: t, dir: dir, addr: freeAddr(t), output: &output{}}
	d.client = api.NewClient(func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, "run", "control.sock"))
	})
	cmd := exec.Command(filepath.Join(bin, "hotdeployd"), "run", "--service", "mqtt", "--root", dir+"/root", "--run-dir", dir+"/run")
	cmd.Stdout, cmd.Stderr = d.output, d.output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.stop(cmd) })
	for { // nothing tells when the socket is there
		if _, err := d.client.Status(d.ctx()); err == nil {
			return d
		}
		if t.Context().Err() != nil {
			t.Fatal("the daemon does not answer")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// stop ends the daemon, and with it the brokers.
func (d *daemon) stop(cmd *exec.Cmd) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := d.client.Stop(ctx, api.StopRequest{Now: true}); err != nil {
		d.t.Errorf("stop the service: %v", err)
	}
	d.client.Close()
	cmd.Process.Signal(os.Interrupt)
	if err := cmd.Wait(); err != nil {
		d.t.Errorf("hotdeployd: %v", err)
	}
	if d.output.contains("DATA RACE") {
		d.t.Error("a broker has a data race")
	}
	if d.t.Failed() {
		d.t.Logf("output of hotdeployd and the brokers:\n%s", d.output)
	}
}

func (d *daemon) ctx() context.Context {
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	d.t.Cleanup(cancel)
	return ctx
}

// push brings the next release and waits for the outcome.
func (d *daemon) push(changes ...func(*release.Spec)) api.Upgrade {
	d.t.Helper()
	d.last++
	version := fmt.Sprint(d.last)
	if err := d.install(version, changes...); err != nil {
		d.t.Fatalf("install %s: %v", version, err)
	}
	u, err := d.client.Upgrade(d.ctx(), api.UpgradeRequest{Kind: api.KindPush, Version: version, By: "test"})
	if err != nil {
		d.t.Fatalf("push %s: %v", version, err)
	}
	ended := fmt.Errorf("ended")
	err = d.client.Events(d.ctx(), 0, func(e api.Event) error {
		if e.Upgrade != nil && e.Upgrade.ID == u.ID && e.Upgrade.Outcome != "" {
			u = *e.Upgrade
			return ended
		}
		return nil
	})
	if err != ended {
		d.t.Fatalf("push %s: %v", version, err)
	}
	return u
}

// unhealthy is a release that fails in the soak, when it has the connections.
func unhealthy(s *release.Spec) {
	s.Health = &release.Health{Probe: release.Probe{Check: release.CheckCommand, Command: []string{"false"}},
		Interval: release.Duration(20 * time.Millisecond), Failures: 3}
	s.Soak.Duration = release.Duration(patience)
	s.SetDefaults()
}

func (d *daemon) install(version string, changes ...func(*release.Spec)) error {
	bin, err := build()
	if err != nil {
		return err
	}
	src := filepath.Join(d.dir, "src-"+version)
	if err := os.Mkdir(src, 0o755); err != nil {
		return err
	}
	if text, err := exec.Command("cp", "--reflink=auto", filepath.Join(bin, "mqttbroker"), src).CombinedOutput(); err != nil {
		return fmt.Errorf("cp: %w: %s", err, text)
	}
	spec := release.Spec{Run: release.Run{Command: []string{"./mqttbroker"}, Env: map[string]string{"MQTTBROKER_BREAK": d.broken, "MQTTBROKER_PATIENCE": "20s"}},
		Listeners: []release.Listener{{Name: "mqtt", Network: "tcp", Address: d.addr}}}
	spec.SetDefaults()
	spec.Soak.Duration = release.Duration(50 * time.Millisecond)
	for _, c := range changes {
		c(&spec)
	}
	packed, err := release.Pack(d.ctx(), release.PackOptions{Dir: src, Service: "mqtt", Version: version, Files: []string{"**"}, Spec: spec})
	if err != nil {
		return err
	}
	plan, err := d.client.PlanUpload(d.ctx(), packed.Bytes)
	if err != nil {
		return err
	}
	for _, b := range plan.Missing {
		f, err := packed.Open(b.SHA256)
		if err != nil {
			return err
		}
		content, err := io.ReadAll(f)
		f.Close()
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(plan.Dir, b.SHA256), content, 0o644); err != nil {
			return err
		}
	}
	_, err = d.client.Complete(d.ctx(), packed.Digest)
	return err
}

// must checks that an upgrade is done, and that all clients have moved.
func must(t *testing.T, u api.Upgrade, clients int) {
	t.Helper()
	if u.Outcome != api.Done {
		t.Fatalf("%s: %v", u.Outcome, u.Error)
	}
	allMoved(t, u.Handoff, clients)
}

func allMoved(t *testing.T, h *api.Handoff, clients int) {
	t.Helper()
	if h == nil || h.Moved < clients || h.Refused != 0 || h.Error != "" {
		t.Fatalf("%d clients, and the handoff was %+v", clients, h)
	}
	for why := range h.Kept {
		if why != "closed" && why != "closing" { // somebody who was just leaving
			t.Fatalf("%d clients, and the handoff was %+v", clients, h)
		}
	}
	t.Logf("moved %d in %s, longest pause %s", h.Moved, h.Took, h.LongestPause)
}

func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// output is what the processes print.
type output struct {
	mu sync.Mutex // protects b
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	b := o.b.Bytes()
	return string(b[max(0, len(b)-16<<10):])
}

func (o *output) contains(text string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return bytes.Contains(o.b.Bytes(), []byte(text))
}
