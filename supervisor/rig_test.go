package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/config"
	"github.com/hotdeploy/hotdeploy/internal/procs"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/testdata/apps"
)

// The test binary is also the launch helper, and every app in selves.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "launch" {
		procs.LaunchMain(os.Args[2:])
	}
	if len(os.Args) > 2 && os.Args[1] == "app" {
		selves[os.Args[2]]()
		os.Exit(0)
	}
	if len(os.Args) > 1 && os.Args[1] == "command" {
		beCommand()
		os.Exit(0)
	}
	if len(os.Args) > 1 && os.Args[1] == "daemon" {
		beDaemon()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// rig is a supervisor with real processes under it, spoken to through its control socket.
type rig struct {
	t      testing.TB
	dir    string
	cfg    config.Daemon
	client *api.Client
	addr   string // of the app's listener
	app    string // the app's binary; empty: wsecho
	log    *logBuffer
	stop   func()
	s      *Supervisor // for what cannot be seen from outside

	prepare func(*Options)    // before New
	adapt   func(*Supervisor) // before Run
}

// newRig starts a supervisor in this process, on an empty root.
func newRig(t testing.TB) *rig {
	t.Helper()
	r := emptyRig(t)
	r.start()
	return r
}

func emptyRig(t testing.TB) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "hd") // shorter than t.TempDir: socket paths are limited to 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeAll(t, dir) })
	audit(t, filepath.Join(dir, "run"))
	r := &rig{t: t, dir: dir, addr: freeAddr(t), log: &logBuffer{}}
	r.cfg = config.Daemon{Service: "echo", Root: filepath.Join(dir, "root"), RunDir: filepath.Join(dir, "run")}
	if err := os.MkdirAll(r.cfg.Root, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the supervisor's log:\n%s", r.log)
		}
	})
	return r
}

// start runs the supervisor; it is stopped when the test ends, or by r.stop.
func (r *rig) start() {
	r.t.Helper()
	opt := Options{Config: r.cfg, Version: "test", Helper: []string{"/proc/self/exe", "launch"},
		Environ: []string{"PATH=" + os.Getenv("PATH")}, Output: devNull(r.t), Log: log.New(r.log, "", log.Lmicroseconds)}
	if r.prepare != nil {
		r.prepare(&opt)
	}
	s, err := New(opt)
	if err != nil {
		r.t.Fatal(err)
	}
	if r.s = s; r.adapt != nil {
		r.adapt(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		r.client.Close()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
	})
	r.t.Cleanup(r.stop)
	r.connect(done)
}

// connect waits until the control socket answers; done gets the end of whoever should.
func (r *rig) connect(done chan error) {
	r.t.Helper()
	r.client = api.NewClient(func(ctx context.Context) (net.Conn, error) {
		return DialControl(ctx, ControlSocket(r.cfg.RunDir))
	})
	for { // the socket appears at some moment; nothing tells when
		if _, err := r.client.Status(r.ctx()); err == nil {
			return
		}
		select {
		case err := <-done:
			done <- err
			r.t.Fatalf("Run: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	r.t.Cleanup(cancel)
	return ctx
}

// change adapts the spec of a release that a test makes.
type change func(*release.Spec)

func env(kv ...string) change {
	return func(s *release.Spec) {
		for i := 0; i < len(kv); i += 2 {
			s.Run.Env[kv[i]] = kv[i+1]
		}
	}
}

func soaks(d time.Duration) change {
	return func(s *release.Spec) { s.Soak.Duration = release.Duration(d) }
}

// stopsWithin is for an app that is to be killed.
func stopsWithin(d time.Duration) change {
	return func(s *release.Spec) { s.Run.StopAfter = release.Duration(d) }
}

// install brings a release of wsecho onto the "host", as a push does but for the line.
func (r *rig) install(version string, changes ...change) {
	r.t.Helper()
	if err := r.tryInstall(version, changes...); err != nil {
		r.t.Fatalf("install %s: %v", version, err)
	}
}

// pack makes a release.
func (r *rig) pack(version string, changes ...change) (*release.Packed, error) {
	r.t.Helper()
	src := filepath.Join(r.dir, "src-"+version)
	if r.app == "" {
		r.app = apps.Build(r.t, "wsecho", "", "")
	}
	writeFile(r.t, filepath.Join(src, "bin/wsecho"), "#!/bin/sh\nexec "+r.app+` "$@"`) // some bytes: a release of megabytes is the store's to test
	return release.Pack(r.ctx(), release.PackOptions{Dir: src, Service: "echo", Version: version, Files: []string{"**"}, Spec: r.specOf(changes...)})
}

func (r *rig) specOf(changes ...change) release.Spec {
	spec := release.Spec{Run: release.Run{Command: []string{"bin/wsecho"}, Env: map[string]string{}},
		Listeners: []release.Listener{{Name: "http", Network: "tcp", Address: r.addr}}}
	spec.SetDefaults()
	spec.Soak.Duration = release.Duration(200 * time.Millisecond)
	spec.Run.StopAfter = release.Duration(20 * time.Second) // nobody is to be killed who ends slowly
	for _, c := range changes {
		c(&spec)
	}
	return spec
}

func (r *rig) tryInstall(version string, changes ...change) error {
	r.t.Helper()
	packed, err := r.pack(version, changes...)
	if err != nil {
		return err
	}
	plan, err := r.client.PlanUpload(r.ctx(), packed.Bytes)
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
	_, err = r.client.Complete(r.ctx(), packed.Digest)
	return err
}

// upgrade asks for a release and waits for the outcome.
func (r *rig) upgrade(kind, version string) api.Upgrade {
	r.t.Helper()
	u, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: kind, Version: version, By: "tester"})
	if err != nil {
		r.t.Fatalf("%s %s: %v", kind, version, err)
	}
	return r.outcome(u.ID)
}

// outcome waits until the upgrade has ended.
func (r *rig) outcome(id string) api.Upgrade {
	r.t.Helper()
	r.await(func(e api.Event) bool { return e.Upgrade != nil && e.Upgrade.ID == id && e.Upgrade.Outcome != "" })
	u, err := r.client.GetUpgrade(r.ctx(), id)
	if err != nil {
		r.t.Fatal(err)
	}
	return u
}

// push installs and upgrades, and expects it to be done.
func (r *rig) push(version string, changes ...change) api.Upgrade {
	r.t.Helper()
	r.install(version, changes...)
	u := r.upgrade(api.KindPush, version)
	if u.Outcome != api.Done {
		r.t.Fatalf("push %s: %s: %v", version, u.Outcome, u.Error)
	}
	return u
}

// await reads events, past ones too, until one is the wanted one.
func (r *rig) await(wanted func(api.Event) bool) {
	r.t.Helper()
	found := fmt.Errorf("found")
	err := r.client.Events(r.ctx(), 0, func(e api.Event) error {
		if wanted(e) {
			return found
		}
		return nil
	})
	if err != found {
		r.t.Fatalf("waiting for an event: %v", err)
	}
}

// awaitPhase waits until that upgrade has come to a phase.
func (r *rig) awaitPhase(u api.Upgrade, phase string) {
	r.t.Helper()
	r.await(func(e api.Event) bool {
		return e.Upgrade != nil && e.Upgrade.ID == u.ID && e.Upgrade.Phase == phase
	})
}

func (r *rig) awaitText(part string) {
	r.t.Helper()
	r.await(func(e api.Event) bool { return strings.Contains(e.Text, part) })
}

func (r *rig) status() api.Status {
	r.t.Helper()
	st, err := r.client.Status(r.ctx())
	if err != nil {
		r.t.Fatal(err)
	}
	return st
}

// version asks the app over a new connection who it is.
func (r *rig) version() string {
	r.t.Helper()
	return r.versionTold(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}})
}

func (r *rig) versionTold(c *http.Client) string {
	r.t.Helper()
	res, err := c.Get("http://" + r.addr + "/version")
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 200 {
		r.t.Fatalf("GET /version: %s: %v", res.Status, err)
	}
	return strings.TrimSpace(string(b))
}

// serves tells whether new connections come to reach that version. The generation before was told to stop accepting, but nobody
// hears when it has: until then it answers one or the other of them, as well as ever.
func (r *rig) serves(version string) bool {
	r.t.Helper()
	for limit := time.Now().Add(20 * time.Second); time.Now().Before(limit); {
		if r.version() == version {
			return true
		}
	}
	return false
}

// killSoaking kills the app of an upgrade that is in the soak.
func (r *rig) killSoaking(u api.Upgrade) {
	r.t.Helper()
	r.awaitPhase(u, api.PhaseSoak)
	for _, g := range r.status().Generations {
		if g.State == api.GenSoaking {
			if err := syscall.Kill(g.PID, syscall.SIGKILL); err != nil {
				r.t.Fatal(err)
			}
			return
		}
	}
	r.t.Fatal("nothing is in the soak")
}

// hostEnv lets every process that is started from now on have these variables, whatever its release says.
func (r *rig) hostEnv(lines string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.cfg.Root, "env"), []byte(lines), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// awaitDraining waits until that generation, of wsecho, has told that it accepts nothing more, or has gone.
func (r *rig) awaitDraining(number int) {
	r.t.Helper()
	for limit := time.Now().Add(20 * time.Second); ; <-time.After(time.Millisecond) {
		gens := r.status().Generations
		i := slices.IndexFunc(gens, func(g api.Generation) bool { return g.Number == number })
		if i < 0 || strings.HasPrefix(gens[i].Text, "draining") {
			return
		}
		if time.Now().After(limit) {
			r.t.Fatalf("it goes on accepting: %+v", gens[i])
		}
	}
}

// awaitOnly waits until no generations but these are left.
func (r *rig) awaitOnly(numbers ...int) {
	r.t.Helper()
	for limit := time.Now().Add(20 * time.Second); ; <-time.After(time.Millisecond) {
		var left []int
		for _, g := range r.status().Generations {
			left = append(left, g.Number)
		}
		if slices.Sort(left); slices.Equal(left, numbers) {
			return
		}
		if time.Now().After(limit) {
			r.t.Fatalf("generations %v are left, want %v", left, numbers)
		}
	}
}

func freeAddr(t testing.TB) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func devNull(t testing.TB) *os.File {
	f, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func writeFile(t testing.TB, name, content string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(content), 0o755)); err != nil {
		t.Fatal(err)
	}
}

// removeAll removes releases too, whose directories are read-only.
func removeAll(t testing.TB, dir string) {
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			os.Chmod(path, 0o700)
		}
		return nil
	})
	if err := os.RemoveAll(dir); err != nil {
		t.Error(err)
	}
}

type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
