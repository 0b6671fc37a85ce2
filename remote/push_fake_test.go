package remote_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/internal/sshtest"
	"github.com/hotdeploy/hotdeploy/internal/version"
	"github.com/hotdeploy/hotdeploy/remote"
)

// fakeDaemon speaks the control API on a unix socket and does nothing: a test decides how its upgrades go, and what happens
// to the line before and after each request.
type fakeDaemon struct {
	t      *testing.T
	socket string
	parts  string // where uploads go

	// before is called before a request has its effect, after before it is answered. ctx ends when the line is cut; a request
	// whose context has ended then has no effect.
	before func(ctx context.Context, step string)
	after  func(step string)

	mu       sync.Mutex // protects what follows
	status   api.Status
	events   []api.Event
	news     chan struct{} // closed and replaced with each event
	manifest *release.Manifest
	ending   *api.Upgrade // how an upgrade ends by itself; nil: it goes on until cancelled
	asked    []string     // every request, in order
	damaged  int          // how many times Complete finds a damaged part
	held     bool         // the upgrade in flight does not end yet
	full     bool         // there is no room for a release
	has      []*release.Packed
	take     func(base string) error // what becomes of a bundle with that base
	stalls   int                     // how many times a bundle does not arrive whole
	lost     bool                    // nor any of it; else half of what was sent
	arrived  map[string]int64
}

func newDaemon(t *testing.T) *fakeDaemon {
	t.Helper()
	dir := t.TempDir()
	f := &fakeDaemon{t: t, socket: filepath.Join(dir, "control.sock"), parts: filepath.Join(dir, "parts"),
		before: func(context.Context, string) {}, after: func(string) {}, news: make(chan struct{}),
		ending: &api.Upgrade{Outcome: api.Done}}
	old := release.Ref{Version: "1", Digest: strings.Repeat("1", 64)}
	f.status = api.Status{API: api.Version, Service: "chat", State: api.StateServing, Text: "serving 1 (generation 6)", Committed: &old, Seq: 1,
		Daemon:      api.Daemon{Version: version.String()},
		Generations: []api.Generation{{Number: 6, Release: old, State: api.GenServing, Connections: 1204}}}
	if err := os.Mkdir(f.parts, 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: f.routes()}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return f
}

func (f *fakeDaemon) routes() http.Handler {
	mux := http.NewServeMux()
	step := func(pattern, name string, do func(r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			f.mu.Lock()
			f.asked = append(f.asked, name)
			f.mu.Unlock()
			b, _ := io.ReadAll(r.Body) // only then the server notices that the line is cut
			r.Body = io.NopCloser(bytes.NewReader(b))
			f.before(r.Context(), name)
			if r.Context().Err() != nil { // as if it had not arrived
				return
			}
			out, err := do(r)
			f.after(name)
			if e := new(api.Error); errors.As(err, &e) {
				w.WriteHeader(e.HTTPStatus())
				out = e
			}
			json.NewEncoder(w).Encode(out)
		})
	}
	step("GET /v1/status", "status", func(*http.Request) (any, error) { return f.snapshot(), nil })
	step("POST /v1/uploads", "plan", f.plan)
	step("POST /v1/uploads/{digest}/complete", "complete", f.complete)
	step("PUT /v1/uploads/{digest}/bundles/{id}", "bundle", f.bundle)
	step("DELETE /v1/uploads/{digest}", "discard", func(*http.Request) (any, error) { return nil, nil })
	step("POST /v1/upgrades", "upgrade", f.begin)
	step("GET /v1/upgrades/{id}", "get", func(r *http.Request) (any, error) { return f.find(r.PathValue("id")) })
	step("DELETE /v1/upgrades/{id}", "cancel", f.cancel)
	mux.HandleFunc("GET /v1/events", f.stream)
	return mux
}

func (f *fakeDaemon) snapshot() api.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status
}

func (f *fakeDaemon) set(change func(*api.Status)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.status)
}

// plan finds out what lies in parts, and asks for the rest.
func (f *fakeDaemon) plan(r *http.Request) (any, error) {
	if r.URL.Query().Has("bundle") {
		return f.planBundle(r)
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, api.ErrBadRequest.With(err.Error())
	}
	m, err := release.Decode(b)
	if err != nil {
		return nil, api.ErrManifest.With(err.Error())
	}
	f.mu.Lock()
	f.manifest = m
	f.mu.Unlock()
	plan := api.UploadPlan{Digest: release.Digest(b), Dir: f.parts}
	for _, file := range m.Files {
		blob := api.Blob{SHA256: file.SHA256, Size: file.Size}
		if info, err := os.Stat(filepath.Join(f.parts, file.SHA256)); err == nil {
			blob.Offset = info.Size()
		}
		if blob.Offset < blob.Size {
			plan.Missing = append(plan.Missing, blob)
		}
	}
	return plan, nil
}

// complete compares what has arrived; damage that the test asked for happens on the way there.
func (f *fakeDaemon) complete(*http.Request) (any, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, file := range f.manifest.Files {
		path := filepath.Join(f.parts, file.SHA256)
		if i == 0 && f.damaged > 0 {
			f.damaged--
			os.WriteFile(path, make([]byte, file.Size), 0o644)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, api.ErrIncomplete.With(file.Path + " is missing")
		}
		if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != file.SHA256 {
			os.Remove(path)
			return nil, api.ErrDigest.With(file.Path + " is damaged")
		}
	}
	return api.ReleaseInfo{}, nil
}

func (f *fakeDaemon) begin(r *http.Request) (any, error) {
	var req api.UpgradeRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		return nil, api.ErrBadRequest.With(err.Error())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if up := f.status.Upgrade; up != nil {
		return nil, api.ErrBusy.With(up.By + " is at it")
	}
	up := api.Upgrade{ID: fmt.Sprintf("up%d", f.status.Seq), Kind: req.Kind, By: req.By, Generation: 7, Started: time.Now(),
		To: release.Ref{Version: req.Version, Digest: req.Digest}, From: f.status.Committed, Phase: api.PhaseVerify}
	f.status.Upgrade = &up
	f.emitLocked(up)
	for _, phase := range []string{api.PhaseStart, api.PhaseReady, api.PhaseSoak} {
		up.Phases = append(slices.Clone(up.Phases), api.PhaseTime{Phase: up.Phase, Took: time.Millisecond})
		up.Phase = phase
		f.emitLocked(up)
	}
	if f.ending != nil {
		f.endLocked(*f.ending)
	}
	return up, nil
}

func (f *fakeDaemon) emitLocked(up api.Upgrade) {
	f.status.Seq++
	f.events = append(f.events, api.Event{Seq: f.status.Seq, Type: api.EventUpgrade, Upgrade: &up})
	if f.status.Upgrade != nil {
		f.status.Upgrade = &up
	}
	close(f.news)
	f.news = make(chan struct{})
}

// endLocked ends the upgrade in flight with how's outcome and error.
func (f *fakeDaemon) endLocked(how api.Upgrade) {
	up := *f.status.Upgrade
	now := time.Now()
	up.Finished, up.Outcome, up.Error = &now, how.Outcome, how.Error
	if how.Phase != "" {
		up.Phase = how.Phase
	}
	f.status.Upgrade, f.status.Last = nil, &up
	if up.Outcome == api.Done {
		f.status.Committed = &up.To
		f.status.Text = "serving " + up.To.Version + " (generation 7)"
		f.status.Generations = []api.Generation{{Number: 7, Release: up.To, State: api.GenServing}}
	}
	f.emitLocked(up)
}

func (f *fakeDaemon) end(how api.Upgrade) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.endLocked(how)
}

func (f *fakeDaemon) find(id string) (any, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, up := range []*api.Upgrade{f.status.Upgrade, f.status.Last} {
		if up != nil && up.ID == id {
			return up, nil
		}
	}
	return nil, api.ErrNotFound.With("no upgrade " + id)
}

func (f *fakeDaemon) cancel(r *http.Request) (any, error) {
	f.mu.Lock()
	if up := f.status.Upgrade; up != nil && !f.held {
		f.endLocked(api.Upgrade{Outcome: api.NothingChanged, Error: api.ErrCancelled.With("cancelled")})
	}
	f.mu.Unlock()
	if f.held {
		<-r.Context().Done()
	}
	return f.find(r.PathValue("id"))
}

func (f *fakeDaemon) stream(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.asked = append(f.asked, "events")
	f.mu.Unlock()
	f.before(r.Context(), "events")
	if r.Context().Err() != nil {
		return
	}
	var since uint64
	fmt.Sscan(r.URL.Query().Get("since"), &since)
	for {
		f.mu.Lock()
		var out []api.Event
		for _, e := range f.events {
			if e.Seq > since {
				out = append(out, e)
			}
		}
		news := f.news
		f.mu.Unlock()
		for _, e := range out {
			since = e.Seq
			json.NewEncoder(w).Encode(e)
		}
		if w.(http.Flusher).Flush(); len(out) > 0 {
			f.after("events")
		}
		select {
		case <-news:
		case <-r.Context().Done():
			return
		}
	}
}

func (f *fakeDaemon) count(step string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, s := range f.asked {
		if s == step {
			n++
		}
	}
	return n
}

// rig is a push to a fake daemon through a real SSH connection.
type rig struct {
	*fakeDaemon
	ssh  *sshtest.Server
	d    *remote.Deployment
	said *said
	down atomic.Bool // the host is not to be reached again
}

// cutForGood cuts the line; nobody connects again.
func (r *rig) cutForGood() {
	r.down.Store(true)
	r.ssh.Drop()
}

// said is what the operator was told.
type said struct {
	mu    sync.Mutex
	lines []string
}

func (s *said) add(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, text)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.lines, "\n")
}

func newRig(t *testing.T, opts sshtest.Options) *rig {
	t.Helper()
	r := &rig{fakeDaemon: newDaemon(t), said: new(said)}
	r.ssh = startSSH(t, &opts)
	h := sshHost(t, r.ssh, opts)
	r.d = &remote.Deployment{Name: "web-1", By: "ann@desk", Reconnect: 10 * time.Second,
		Open: func(ctx context.Context) (*remote.Line, error) {
			if r.down.Load() {
				return nil, errors.New("no route to host")
			}
			s, err := remote.Dial(ctx, h, remote.Options{})
			if err != nil {
				return nil, err
			}
			return &remote.Line{Client: remote.Control(s, "chat", r.socket), Session: s}, nil
		},
		Report: remote.Report{Say: r.said.add, Phase: func(p api.PhaseTime) { r.said.add("phase " + p.Phase) }},
	}
	t.Cleanup(r.d.Close)
	return r
}

// keyFiles is where a server's options keep the client's key for sshHost.
var keyFiles sync.Map // *sshtest.Server → path

func startSSH(t *testing.T, opts *sshtest.Options) *sshtest.Server {
	t.Helper()
	key, err := sshtest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	opts.AuthorizedKeys = []ssh.PublicKey{key.Public()}
	s, err := sshtest.Start(*opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	pem, err := key.PEM("")
	if err != nil {
		t.Fatal(err)
	}
	keyFiles.Store(s, tempFile(t, pem))
	return s
}

func sshHost(t *testing.T, s *sshtest.Server, _ sshtest.Options) remote.Host {
	t.Helper()
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	key, _ := keyFiles.Load(s)
	return remote.Host{Destination: "web-1", Name: "127.0.0.1", Port: s.Port(), User: u.Username,
		KnownHosts: []string{tempFile(t, []byte(s.KnownHosts()))}, IdentityFiles: []string{key.(string)}}
}

func tempFile(t *testing.T, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// packed is a release of two files.
func packed(t *testing.T, version string) *release.Packed {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"run.sh": "#!/bin/sh\nexec sleep 1000\n", "data": strings.Repeat("data ", 20_000) + version} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	o := release.PackOptions{Dir: dir, Service: "chat", Version: version, Files: []string{"run.sh", "data"}}
	o.Spec.Run.Command = []string{"./run.sh"}
	o.Spec.SetDefaults()
	p, err := release.Pack(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// once returns a hook that calls do the first time that step comes.
func once(step string, do func()) func(string) {
	var o sync.Once
	return func(s string) {
		if s == step {
			o.Do(do)
		}
	}
}

// onceBefore is once for before.
func onceBefore(step string, do func(context.Context)) func(context.Context, string) {
	var o sync.Once
	return func(ctx context.Context, s string) {
		if s == step {
			o.Do(func() { do(ctx) })
		}
	}
}
