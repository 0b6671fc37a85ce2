package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/supervisor/store"
)

// Limits of the control API: what one peer may send, and how many there may be.
const (
	maxRequest     = 64 << 10
	maxStreams     = 32       // followers at once
	maxLarge       = 2        // requests at once that may be larger than maxRequest
	leastRate      = 64 << 10 // bytes a second of those
	streamed       = -1       // of a request that its endpoint reads by itself
	maxBy          = 200      // bytes of who asks
	maxVersion     = 100
	shutdownWithin = 2 * time.Second
)

// patience is how slow a peer may be.
type patience struct {
	header time.Duration // the whole of it
	read   time.Duration // until the next piece of a request
	write  time.Duration // of one answer, or of one piece of a stream
	large  time.Duration // the whole of a request that may be a large one, beside what its bytes take at leastRate
	idle   time.Duration // between requests
	beat   time.Duration // of a stream of events in which nothing happens, in whole seconds: so they know that we live
}

var usualPatience = patience{header: 5 * time.Second, read: 30 * time.Second, write: 30 * time.Second, large: time.Minute, idle: time.Minute, beat: 5 * time.Second}

// ControlSocket is the control socket's path in a run directory.
func ControlSocket(runDir string) string { return filepath.Join(runDir, "control.sock") }

// DialControl connects to a control socket. Where its queue is full, since somebody floods it or the daemon is slow, it tries again for some seconds.
func DialControl(ctx context.Context, socket string) (net.Conn, error) {
	limit, tick := time.After(queueTimeout), time.NewTicker(queueTick)
	defer tick.Stop()
	for {
		c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if !errors.Is(err, unix.EAGAIN) { // see connect(2), of unix sockets
			return c, err
		}
		select {
		case <-tick.C:
		case <-limit:
			return nil, err
		case <-ctx.Done():
			return nil, err
		}
	}
}

const (
	queueTimeout = 5 * time.Second
	queueTick    = 10 * time.Millisecond
)

// listenControl binds the control socket, open to the service's user and group (and root). The store's lock is ours, so a socket
// file that is there is a dead supervisor's.
func (s *Supervisor) listenControl() (net.Listener, error) {
	path := ControlSocket(s.opt.Config.RunDir)
	if s.inheritedAPI != nil {
		return s.inheritControl()
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("replace the control socket: %w", err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for commands: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		ln.Close()
		return nil, fmt.Errorf("open the control socket to its group: %w", err)
	}
	s.control = ln.(*net.UnixListener)
	return newPeerListener(ln, s.isApp, s.logf), nil
}

// inheritControl goes on with the socket on which the supervisor before this one took commands: nobody is refused meanwhile.
func (s *Supervisor) inheritControl() (net.Listener, error) {
	defer s.inheritedAPI.Close()
	ln, err := net.FileListener(s.inheritedAPI)
	if err != nil {
		return nil, fmt.Errorf("go on with the control socket: %w", err)
	}
	var ok bool
	if s.control, ok = ln.(*net.UnixListener); !ok {
		return nil, fmt.Errorf("go on with the control socket: it is %s", ln.Addr())
	}
	s.control.SetUnlinkOnClose(true)
	return newPeerListener(ln, s.isApp, s.logf), nil
}

// isApp tells whether pid belongs to a generation.
func (s *Supervisor) isApp(pid int) (is bool) {
	s.do(func() { is = s.generationOf(pid) != nil })
	return is
}

type controlServer struct{ http *http.Server }

func (s *Supervisor) serveControl(ln net.Listener) *controlServer {
	srv := &http.Server{Handler: s.routes(), ReadHeaderTimeout: s.patience.header, IdleTimeout: s.patience.idle, MaxHeaderBytes: 16 << 10,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerUID{}, c.(*peerConn).uid)
		},
		BaseContext: func(net.Listener) context.Context { return s.ctx }, ErrorLog: s.opt.Log}
	s.background(func() {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			s.logf("the control socket: %v", err)
		}
	})
	return &controlServer{srv}
}

// shutdown lets the answers in flight finish, shortly.
func (c *controlServer) shutdown() {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownWithin)
	defer cancel()
	if c.http.Shutdown(ctx) != nil {
		c.http.Close()
	}
}

// endpoint answers one kind of request: with what becomes JSON, with an error, or with neither if it has written by itself.
type endpoint func(w http.ResponseWriter, r *http.Request) (any, error)

func (s *Supervisor) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, limit int64, f endpoint) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { s.answer(w, r, limit, f) })
	}
	handle("GET /v1/status", 0, func(http.ResponseWriter, *http.Request) (any, error) { return s.status(), nil })
	handle("GET /v1/releases", 0, func(http.ResponseWriter, *http.Request) (any, error) { return s.releases() })
	handle("POST /v1/uploads", release.MaxManifestBytes, s.planUpload)
	handle("POST /v1/uploads/{digest}/complete", maxRequest, s.completeUpload)
	handle("PUT /v1/uploads/{digest}/bundles/{id}", streamed, s.takeBundle)
	handle("DELETE /v1/uploads/{digest}", 0, func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return s.afterwards(s.discard(r.PathValue("digest")))
	})
	handle("POST /v1/upgrades", maxRequest, s.beginUpgrade)
	handle("GET /v1/upgrades/{id}", 0, func(_ http.ResponseWriter, r *http.Request) (any, error) { return s.findUpgrade(r.PathValue("id")) })
	handle("DELETE /v1/upgrades/{id}", 0, s.cancelUpgrade)
	handle("GET /v1/history", 0, s.history)
	handle("GET /v1/events", 0, s.streamEvents)
	handle("POST /v1/start", maxRequest, func(_ http.ResponseWriter, r *http.Request) (any, error) {
		req, err := decodeStop(r)
		if err != nil {
			return nil, err
		}
		return s.afterwards(s.startAgain(r.Context(), req.By))
	})
	handle("POST /v1/stop", maxRequest, func(_ http.ResponseWriter, r *http.Request) (any, error) {
		req, err := decodeStop(r)
		if err != nil {
			return nil, err
		}
		return s.afterwards(s.stop(req))
	})
	handle("POST /daemon/replace", maxRequest, func(w http.ResponseWriter, r *http.Request) (any, error) {
		req, err := decodeStop(r)
		if err != nil {
			return nil, err
		}
		err = s.replace(context.WithoutCancel(r.Context()), req.By)
		if s.hasLeft() {
			defer s.leaving() // when whoever asked has his answer
		}
		if err != nil {
			return nil, err
		}
		writeJSON(w, http.StatusOK, s.status())
		http.NewResponseController(w).Flush() // the peer may have left; nobody to tell
		return nil, nil
	})
	handle("DELETE /v1/generations/{number}", 0, func(_ http.ResponseWriter, r *http.Request) (any, error) {
		n, err := strconv.Atoi(r.PathValue("number"))
		if err != nil {
			return nil, api.ErrBadRequest.With("a generation is a number")
		}
		return s.afterwards(s.retire(n, r.URL.Query().Get("now") == "1"))
	})
	handle("GET /v1/logs", 0, s.streamLogs)
	metrics := s.metrics()
	handle("GET /metrics", 0, func(w http.ResponseWriter, r *http.Request) (any, error) {
		http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.patience.write))
		metrics.ServeHTTP(w, r)
		return nil, nil
	})
	handle("/", maxRequest, s.unknown)
	return s.cleanPaths(mux)
}

func (s *Supervisor) unknown(_ http.ResponseWriter, r *http.Request) (any, error) {
	return nil, api.ErrNotFound.With(fmt.Sprintf("this daemon (%s) has no %s %s", s.opt.Version, r.Method, r.URL.Path))
}

// cleanPaths answers itself where the mux would redirect, which no client of ours follows.
func (s *Supervisor) cleanPaths(mux http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := r.URL.EscapedPath()
		if clean := path.Clean(p); !path.IsAbs(p) || (p != clean && p != clean+"/") || r.RequestURI == "*" {
			s.answer(w, r, maxRequest, s.unknown)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// answer takes one request in and writes its answer. Run waits for those that it lets in.
func (s *Supervisor) answer(w http.ResponseWriter, r *http.Request, limit int64, f endpoint) {
	if !s.enter() {
		s.writeError(w, api.ErrStopping.With("the supervisor is stopping"))
		return
	}
	defer s.wg.Done()
	rc := http.NewResponseController(w)
	rc.SetWriteDeadline(time.Time{}) // of the answer before this one on the same connection
	answer, err := s.handle(w, r, limit, f)
	rc.SetWriteDeadline(time.Now().Add(s.patience.write))
	switch {
	case err != nil && s.ctx.Err() != nil && errors.Is(err, context.Canceled):
		s.writeError(w, api.ErrStopping.With("the supervisor is ending"))
	case err != nil:
		s.writeError(w, err)
	case answer != nil:
		writeJSON(w, http.StatusOK, answer)
	}
}

// handle lets few large requests in at a time: until f has ended they are in memory, and what they unpack to.
func (s *Supervisor) handle(w http.ResponseWriter, r *http.Request, limit int64, f endpoint) (any, error) {
	if limit > maxRequest {
		select {
		case s.large <- struct{}{}:
			defer func() { <-s.large }()
		case <-r.Context().Done():
			return nil, context.Cause(r.Context())
		}
	}
	if err := s.readBody(w, r, limit); err != nil {
		return nil, err
	}
	return f(w, r)
}

// readBody takes the whole request in, so that only a slow sender has a time limit, and not the work that follows: a read
// deadline that passes during that would end r's context. A sender may be slow, but must not stand still; one that others may wait for must not be too slow.
func (s *Supervisor) readBody(w http.ResponseWriter, r *http.Request, limit int64) error {
	if limit == streamed {
		return nil
	}
	rc := http.NewResponseController(w)
	began := time.Now()
	sender := &steady{r: http.MaxBytesReader(w, r.Body, limit), rc: rc, pause: s.patience.read}
	if limit > maxRequest {
		sender.until = began.Add(s.patience.large)
	}
	body, err := io.ReadAll(sender)
	if err == nil {
		rc.SetReadDeadline(time.Time{})
		r.Body = io.NopCloser(bytes.NewReader(body))
		return nil
	}
	// The deadline stays: net/http would wait for the rest of the body before it sends the answer.
	rc.SetReadDeadline(time.Now().Add(s.patience.read))
	w.Header().Set("Connection", "close")
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return api.ErrBadRequest.With(fmt.Sprintf("the request is larger than %d bytes", limit))
	case errors.Is(err, os.ErrDeadlineExceeded) && sender.late():
		return api.ErrBadRequest.With(fmt.Sprintf("of the request came only %d bytes in %s", len(body), time.Since(began).Round(time.Second)))
	case errors.Is(err, os.ErrDeadlineExceeded):
		return api.ErrBadRequest.With(fmt.Sprintf("of the request came only %d bytes, then nothing for %s", len(body), s.patience.read))
	}
	return api.ErrBadRequest.With(fmt.Sprintf("the request did not arrive: %v", err))
}

// steady reads from a peer who may pause for so long.
type steady struct {
	r     io.Reader
	rc    *http.ResponseController
	pause time.Duration
	until time.Time // that it may go on, and longer for what has come; zero: for ever
}

func (b *steady) Read(p []byte) (int, error) {
	deadline := time.Now().Add(b.pause)
	if !b.until.IsZero() && b.until.Before(deadline) {
		deadline = b.until
	}
	b.rc.SetReadDeadline(deadline)
	n, err := b.r.Read(p)
	if !b.until.IsZero() {
		b.until = b.until.Add(time.Duration(n) * time.Second / leastRate)
	}
	if err == io.EOF {
		b.rc.SetReadDeadline(time.Time{}) // what is made of it may take its time
	}
	return n, err
}

func (b *steady) late() bool { return !b.until.IsZero() && !time.Now().Before(b.until) }

func (s *Supervisor) afterwards(err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return s.status(), nil
}

// decode reads one JSON object and nothing else.
func decode(r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return api.ErrBadRequest.With(fmt.Sprintf("malformed request: %v", err))
	}
	if _, err := d.Token(); err != io.EOF {
		return api.ErrBadRequest.With("malformed request: something follows the JSON object")
	}
	return nil
}

func decodeStop(r *http.Request) (req api.StopRequest, err error) {
	if err := decode(r, &req); err != nil {
		return req, err
	}
	req.By, err = who(r, req.By)
	return req, err
}

// who is who asks, in words that others will read in logs and answers.
func who(r *http.Request, by string) (string, error) {
	if len(by) > maxBy || strings.ContainsFunc(by, func(c rune) bool { return c == utf8.RuneError || !unicode.IsPrint(c) }) {
		return "", api.ErrBadRequest.With(fmt.Sprintf("by: not one printable line of up to %d bytes", maxBy))
	}
	if by == "" {
		by = fmt.Sprintf("uid %v", r.Context().Value(peerUID{}))
	}
	return by, nil
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v) // the peer may have left; nobody to tell
}

// writeError sends the code, the words and what is serving now.
func (s *Supervisor) writeError(w http.ResponseWriter, err error) {
	var e *api.Error
	switch {
	case errors.As(err, &e):
		c := *e
		c.Message = err.Error() // with what is around it
		e = &c
	default:
		e = internal(err)
	}
	if e.State == "" {
		s.do(func() { e.State = s.servingText() })
	}
	writeJSON(w, e.HTTPStatus(), e)
}

func (s *Supervisor) releases() (any, error) {
	list, err := s.store.List()
	if err != nil {
		return nil, err
	}
	draining := map[string]bool{}
	s.do(func() {
		for _, g := range s.gens {
			draining[g.rel.Digest] = draining[g.rel.Digest] || g.draining != nil
		}
	})
	for i := range list {
		if list[i].State == "" && draining[list[i].Digest] {
			list[i].State = api.GenDraining
		}
	}
	return list, nil
}

func (s *Supervisor) planUpload(_ http.ResponseWriter, r *http.Request) (any, error) {
	manifest, err := s.readManifest(r)
	if err != nil {
		return nil, err
	}
	facts := s.facts()
	facts.Bundle = r.URL.Query().Get("bundle") == "1"
	facts.SameUser = r.Context().Value(peerUID{}) == os.Getuid()
	plan, err := s.store.Plan(r.Context(), manifest, facts)
	if !errors.Is(err, api.ErrConflict) {
		return plan, err
	}
	m, decodeErr := release.Decode(manifest)
	if decodeErr != nil {
		return nil, err
	}
	if busy := s.makeWay(r.Context(), m.Version); busy == api.ErrConflict {
		return nil, err
	} else if busy != nil {
		return nil, busy
	}
	return s.store.Plan(r.Context(), manifest, facts)
}

// facts are what the store must know of this machine.
func (s *Supervisor) facts() store.Facts {
	return store.Facts{OS: runtime.GOOS, Arch: runtime.GOARCH, Env: s.opt.Environ}
}

func (s *Supervisor) completeUpload(_ http.ResponseWriter, r *http.Request) (any, error) {
	if err := s.arrives(r.PathValue("digest")); err != nil {
		return nil, err
	}
	return s.store.Complete(r.Context(), r.PathValue("digest"))
}

func (s *Supervisor) beginUpgrade(w http.ResponseWriter, r *http.Request) (any, error) {
	var req api.UpgradeRequest
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	switch req.Kind {
	case api.KindPush, api.KindRollback, api.KindRestart:
	default:
		return nil, api.ErrBadRequest.With(fmt.Sprintf("kind %q is none of push, rollback, restart", req.Kind))
	}
	if len(req.Version) > maxVersion {
		return nil, api.ErrBadRequest.With("the version is too long")
	}
	var err error
	if req.By, err = who(r, req.By); err != nil {
		return nil, err
	}
	if err := s.removed(r.Context()); err != nil {
		return nil, err
	}
	u, err := s.begin(req)
	if err != nil {
		return nil, err
	}
	writeJSON(w, http.StatusAccepted, s.copyOf(u))
	return nil, nil
}

// removed waits until releases that are being removed are gone, since begin would: whoever does not wait so long for the answer must not find
// an upgrade begun later.
func (s *Supervisor) removed(ctx context.Context) error {
	var wait <-chan struct{}
	s.do(func() { wait = s.pruning })
	if wait == nil {
		return nil
	}
	select {
	case <-wait:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *Supervisor) findUpgrade(id string) (any, error) {
	var u *api.Upgrade
	s.do(func() {
		switch {
		case s.busy != nil && s.busy.record.ID == id:
			c := s.busy.copied()
			u = &c
		case s.last != nil && s.last.ID == id:
			u = s.last
		}
	})
	if u != nil {
		return u, nil
	}
	return s.store.FindUpgrade(id)
}

// history lists what has ended. An answer of the most that there can be is a few megabytes.
func (s *Supervisor) history(_ http.ResponseWriter, r *http.Request) (any, error) {
	const usual, most = 20, 1000
	n := usual
	if text := r.URL.Query().Get("n"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil || n < 1 || n > most {
			return nil, api.ErrBadRequest.With(fmt.Sprintf("n is a number from 1 to %d", most))
		}
	}
	list, err := s.store.History(n)
	if err != nil {
		return nil, err
	}
	return append([]api.Upgrade{}, list...), nil // never null
}

func (s *Supervisor) cancelUpgrade(_ http.ResponseWriter, r *http.Request) (any, error) {
	var u *upgrade
	s.do(func() {
		if s.busy != nil && s.busy.record.ID == r.PathValue("id") {
			u = s.busy
		}
	})
	if u == nil {
		return s.findUpgrade(r.PathValue("id")) // it has ended already, and this tells how
	}
	u.cancel(errCancelled)
	select {
	case <-u.done:
		return s.copyOf(u), nil
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}

// stream writes pieces as they come until the peer leaves or the supervisor ends; a peer that does not read is dropped. beat, which may be nil,
// fires now and then so that a piece without anything in it is written. Of more than maxStreams the oldest is ended: who is there goes on where it
// was, and who only forgot to leave must not keep others out.
func (s *Supervisor) stream(w http.ResponseWriter, r *http.Request, contentType string, beat <-chan time.Time, next func() (b []byte, more <-chan struct{})) {
	rc := http.NewResponseController(w)
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Connection", "close") // its place is free when it ends
	ctx, leave := s.followers.join(r.Context())
	defer leave()
	for {
		b, more := next()
		rc.SetWriteDeadline(time.Now().Add(s.patience.write))
		if _, err := w.Write(b); err != nil || rc.Flush() != nil || more == nil {
			return // without a byte too: the peer shall see that it was heard
		}
		select {
		case <-more:
		case <-beat:
		case <-ctx.Done():
			return
		}
	}
}

func (s *Supervisor) streamEvents(w http.ResponseWriter, r *http.Request) (any, error) {
	since, err := strconv.ParseUint(r.URL.Query().Get("since"), 10, 64)
	if err != nil && r.URL.Query().Has("since") {
		return nil, api.ErrBadRequest.With("since is a sequence number")
	}
	follow := r.URL.Query().Get("follow") == "1"
	every := max(s.patience.beat, time.Second)
	beat := time.NewTicker(every)
	defer beat.Stop()
	w.Header().Set(api.BeatHeader, strconv.Itoa(int(every/time.Second)))
	s.stream(w, r, "application/x-ndjson", beat.C, func() ([]byte, <-chan struct{}) {
		events, more := s.events.since(since)
		var b []byte
		if len(events) == 0 && follow {
			b = []byte("\n")
		}
		for _, e := range events {
			line, err := json.Marshal(e)
			if err != nil {
				continue // every field is plain data
			}
			b, since = append(append(b, line...), '\n'), e.Seq
		}
		if !follow {
			more = nil
		}
		return b, more
	})
	return nil, nil
}

// streamLogs serves what the generations printed, of one release or of all, where there is no journal to ask. Following ends with
// the peer, or with the daemon: there may always be another generation.
func (s *Supervisor) streamLogs(w http.ResponseWriter, r *http.Request) (any, error) {
	if s.opt.Journal {
		return nil, api.ErrConflict.With("the output is in the journal: journalctl -u " + s.opt.Config.Service)
	}
	version := r.URL.Query().Get("release")
	lines, err := strconv.Atoi(r.URL.Query().Get("lines"))
	if err != nil || lines < 0 {
		lines = 100
	}
	follow := r.URL.Query().Get("follow") == "1"
	seq, found := s.printed.beforeLast(lines, version)
	if !found && !follow {
		return nil, api.ErrNotFound.With(fmt.Sprintf("no output of release %q is kept", version))
	}
	s.stream(w, r, "text/plain; charset=utf-8", nil, func() (b []byte, more <-chan struct{}) {
		if b, seq, more = s.printed.after(seq, version); !follow {
			more = nil
		}
		return b, more
	})
	return nil, nil
}
