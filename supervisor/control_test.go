package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/config"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// dialControl is a connection to the control socket for what no client of ours would send.
func (r *rig) dialControl() net.Conn {
	r.t.Helper()
	c, err := net.Dial("unix", ControlSocket(r.cfg.RunDir))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func TestDialControl_FullQueue_IsWaitedFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
		err = errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0))
	}
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		var c net.Conn
		if c, err = net.Dial("unix", path); err == nil {
			defer c.Close()
		}
	}
	if !errors.Is(err, unix.EAGAIN) {
		t.Fatal(err)
	}
	dialed := make(chan error, 1)
	go func() {
		c, err := DialControl(context.Background(), path)
		if err == nil {
			c.Close()
		}
		dialed <- err
	}()
	select {
	case err := <-dialed:
		t.Fatalf("nobody has come out of the queue: %v", err)
	case <-time.After(5 * queueTick):
	}
	first, _, err := unix.Accept(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(first)
	if err := <-dialed; err != nil {
		t.Error(err)
	}
}

// raw sends a request as it is and returns the status line's code and the body.
func (r *rig) raw(method, target string, body io.Reader) (int, []byte) {
	r.t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", ControlSocket(r.cfg.RunDir))
	}}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequestWithContext(r.ctx(), method, "http://control"+target, body)
	if err != nil {
		r.t.Fatal(err)
	}
	res, err := c.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return res.StatusCode, b
}

func TestControl_MalformedRequests_AreToldWhatIsWrong(t *testing.T) {
	r := newRig(t)
	long := strings.Repeat("x", 300)
	for _, tc := range []struct {
		method, target, body string
		code                 *api.Error
		says                 string
	}{
		{"POST", "/v1/upgrades", "", api.ErrBadRequest, "malformed"},
		{"POST", "/v1/upgrades", "{", api.ErrBadRequest, "malformed"},
		{"POST", "/v1/upgrades", "null {}", api.ErrBadRequest, "something follows"},
		{"POST", "/v1/upgrades", `{"kind":"push","vresion":"1"}`, api.ErrBadRequest, "vresion"},
		{"POST", "/v1/upgrades", `{"kind":"start"}`, api.ErrBadRequest, `"start" is none of`},
		{"POST", "/v1/upgrades", `{"kind":"push","by":"` + long + `"}`, api.ErrBadRequest, "by:"},
		{"POST", "/v1/upgrades", `{"kind":"push","by":"two\nlines"}`, api.ErrBadRequest, "by:"},
		{"POST", "/v1/stop", `{"by":"\u001b[31mred"}`, api.ErrBadRequest, "by:"},
		{"POST", "/v1/start", `{"by":"` + long + `"}`, api.ErrBadRequest, "by:"},
		{"POST", "/v1/upgrades", `{"kind":"push","version":"` + long + `"}`, api.ErrBadRequest, "version"},
		{"POST", "/v1/upgrades", `{"kind":"push","version":"../../etc"}`, api.ErrNotFound, "no release"},
		{"POST", "/v1/upgrades", `{"kind":"push"}`, api.ErrNotFound, "no release to go to"},
		{"POST", "/v1/upgrades", `{"kind":"rollback"}`, api.ErrNotFound, "no release to go to"},
		{"POST", "/v1/start", `{}`, api.ErrNotFound, "no release to start"},
		{"POST", "/v1/upgrades", strings.Repeat(" ", maxRequest+1), api.ErrBadRequest, "larger than"},
		{"POST", "/v1/uploads", strings.Repeat(" ", release.MaxManifestBytes+1), api.ErrBadRequest, "larger than"},
		{"POST", "/v1/uploads", "{}", api.ErrManifest, ""},
		{"POST", "/v1/uploads/nothing/complete", "", api.ErrBadRequest, "digest"},
		{"GET", "/v1/status", "a body", api.ErrBadRequest, "larger than 0 bytes"},
		{"GET", "/v1/events?since=yesterday", "", api.ErrBadRequest, "sequence"},
		{"DELETE", "/v1/generations/first", "", api.ErrBadRequest, "number"},
		{"DELETE", "/v1/generations/7", "", api.ErrNotFound, "no generation 7"},
		{"GET", "/v1/upgrades/nobody", "", api.ErrNotFound, "nobody"},
		{"DELETE", "/v1/upgrades/nobody", "", api.ErrNotFound, "nobody"},
		{"GET", "/v1/logs?release=1", "", api.ErrNotFound, "no output"},
		{"GET", "/v2/status", "", api.ErrNotFound, "this daemon (test) has no GET /v2/status"},
		{"PUT", "/v1/status", "", api.ErrNotFound, "PUT"},
		{"GET", "//v1/status", "", api.ErrNotFound, "//v1/status"},
		{"GET", "/v1/../metrics", "", api.ErrNotFound, "metrics"},
	} {
		status, body := r.raw(tc.method, tc.target, strings.NewReader(tc.body))
		e := new(api.Error)
		if err := json.Unmarshal(body, e); err != nil || !errors.Is(e, tc.code) || !strings.Contains(e.Message, tc.says) || status != tc.code.HTTPStatus() || e.State == "" {
			t.Errorf("%s %s %.60s: %d %.300s", tc.method, tc.target, tc.body, status, body)
		}
	}
	if st := r.status(); st.State != api.StateEmpty {
		t.Errorf("%s", st.Text)
	}
}

// generous is a patience with peers that no test exhausts.
func generous() patience {
	const long = 20 * time.Second
	return patience{header: long, read: long, write: long, large: time.Minute, idle: long}
}

func TestControl_SlowSenders(t *testing.T) {
	const short = 300 * time.Millisecond
	for name, tc := range map[string]struct {
		sent      string
		impatient func(*patience)
	}{
		"nothing":     {"", func(p *patience) { p.header = short }},
		"half a head": {"GET /v1/status HTTP/1.1\r\nHost: x\r\n", func(p *patience) { p.header = short }},
		"half a body": {"POST /v1/upgrades HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", func(p *patience) { p.read = short }},
	} {
		t.Run(name+" is not waited for", func(t *testing.T) {
			r := emptyRig(t)
			r.adapt = func(s *Supervisor) { s.patience = generous(); tc.impatient(&s.patience) }
			r.start()
			c := r.dialControl()
			_, writeErr := io.WriteString(c, tc.sent)
			b, err := io.ReadAll(c) // until it hangs up
			if name != "half a body" {
				if errors.Is(err, os.ErrDeadlineExceeded) { // it may hang up while we still write
					t.Errorf("%v after %q", err, b)
				}
				return
			}
			if err != nil || writeErr != nil || !strings.Contains(string(b), "then nothing for") {
				t.Errorf("%v, %v: %s", writeErr, err, b)
			}
		})
	}
}

// readDeadline is of a connection whose clock the test has.
type readDeadline struct {
	http.ResponseWriter
	at time.Time
}

func (d *readDeadline) SetReadDeadline(at time.Time) error {
	d.at = at
	return nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestSteady_SlowButSteadyArrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const pause, pieces = time.Second, 10
		deadline, came := &readDeadline{}, 0
		sender := readerFunc(func(p []byte) (int, error) {
			if left := time.Until(deadline.at); left != pause {
				t.Errorf("before piece %d it waits for %s, not %s", came, left, pause)
			}
			time.Sleep(pause - time.Millisecond) // of this bubble's clock
			if came == pieces {
				return 0, io.EOF
			}
			came++
			return copy(p, "x"), nil
		})
		body, err := io.ReadAll(&steady{r: sender, rc: http.NewResponseController(deadline), pause: pause})
		if err != nil || len(body) != pieces {
			t.Errorf("%q, %v", body, err)
		}
		if !deadline.at.IsZero() {
			t.Error("what is made of it has a time limit")
		}
	})
}

// Who may send much must not be so slow that nobody else can.
func TestControl_SlowSendersOfMuch_AreLetGoInTheEnd(t *testing.T) {
	r := emptyRig(t)
	r.adapt = func(s *Supervisor) { s.patience.large = 500 * time.Millisecond }
	r.start()
	done := make(chan struct{})
	defer close(done)
	for range 2 * maxLarge {
		c := r.dialControl()
		if _, err := io.WriteString(c, "POST /v1/uploads HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		go func() {
			for err := error(nil); err == nil; _, err = io.WriteString(c, " ") {
				select {
				case <-time.After(20 * time.Millisecond):
				case <-done:
					return
				}
			}
		}()
	}
	r.status() // they have been let in
	began := time.Now()
	if _, body := r.raw("POST", "/v1/uploads", strings.NewReader("{}")); !strings.Contains(string(body), api.ErrManifest.Code) {
		t.Errorf("after %s: %s", time.Since(began), body)
	}
}

// Peers that say nothing take up room, but not for long.
func TestControl_ManyPeers_TheNextOneWaits(t *testing.T) {
	r := emptyRig(t)
	r.adapt = func(s *Supervisor) { s.patience.header = 2 * time.Second }
	r.start()
	r.client.Close()
	for range 2 * maxControl {
		r.dialControl()
	}
	if st := r.status(); st.State != api.StateEmpty {
		t.Errorf("%s", st.Text)
	}
}

func TestControl_PeerThatDoesNotRead_IsDropped(t *testing.T) {
	r := emptyRig(t)
	r.adapt = func(s *Supervisor) { s.patience.write = 200 * time.Millisecond }
	r.start()
	c := r.dialControl()
	if _, err := io.WriteString(c, "GET /v1/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	r.status() // it has been let in
	for range keptEvents {
		r.s.emit(api.Event{Type: api.EventService, Upgrade: &api.Upgrade{ID: strings.Repeat("x", 4<<10)}})
	}
	dropped := func() bool { // its handler has ended when nobody streams
		return !slices.ContainsFunc(leftovers(t, openFiles(t), ""), func(l string) bool { return strings.Contains(l, "streamEvents") })
	}
	for limit := time.Now().Add(20 * time.Second); !dropped(); {
		if time.Now().After(limit) {
			t.Fatal("still writing to it")
		}
		<-time.After(10 * time.Millisecond)
	}
}

func TestEvents_GoOnWhereTheLineWasLost(t *testing.T) {
	r := newRig(t)
	r.push("1")
	var all []api.Event
	enough := errors.New("enough")
	newest := r.status().Seq
	collect := func(since uint64, until func(api.Event) bool) (got []api.Event) {
		t.Helper()
		err := r.client.Events(r.ctx(), since, func(e api.Event) error {
			if got = append(got, e); until(e) {
				return enough
			}
			return nil
		})
		if err != enough {
			t.Fatal(err)
		}
		return got
	}
	all = collect(0, func(e api.Event) bool { return e.Seq >= newest })
	for i, e := range all {
		if e.Seq != uint64(i+1) {
			t.Fatalf("event %d has number %d", i, e.Seq)
		}
	}
	middle := all[len(all)/2].Seq
	for i, e := range collect(middle, func(e api.Event) bool { return e.Seq >= newest }) {
		if e.Seq != middle+uint64(i)+1 {
			t.Errorf("after %d came %d", middle+uint64(i), e.Seq)
		}
	}
	if e := collect(newest+1000, func(api.Event) bool { return true }); e[0].Seq != 1 {
		t.Errorf("a number of an earlier daemon: began with %d", e[0].Seq)
	}
	// Who waits at the end gets what comes, in phases, with times.
	u, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindRestart, By: "tester"})
	if err != nil {
		t.Fatal(err)
	}
	var phases []string
	for _, e := range collect(newest, func(e api.Event) bool { return e.Upgrade != nil && e.Upgrade.Outcome != "" }) {
		if e.Upgrade != nil && e.Upgrade.ID == u.ID && e.Upgrade.Outcome == "" {
			phases = append(phases, e.Upgrade.Phase)
		}
	}
	if got := strings.Join(phases, " "); got != "verify start ready soak commit" {
		t.Errorf("phases: %s", got)
	}
	// The daemon's end is the stream's.
	ended := make(chan error, 1)
	go func() {
		ended <- r.client.Events(r.ctx(), r.s.events.last(), func(api.Event) error { return nil })
	}()
	r.stop()
	if err := <-ended; !errors.Is(err, api.ErrLineLost) && !errors.Is(err, api.ErrNotSent) {
		t.Errorf("%v", err)
	}
}

// metric is one line of the text form: name, labels, value.
var metric = regexp.MustCompile(`^([a-z_]+)(\{[^}]*\})? (\S+)$`)

func TestMetrics_SayWhatIsThere(t *testing.T) {
	r := newRig(t)
	r.push("1")
	l := startLoad(t, r.addr, 7, 0)
	r.push("2+three_1.0")
	got := map[string]string{}
	for _, line := range strings.Split(strings.TrimSpace(r.metrics()), "\n") {
		if strings.HasPrefix(line, "# ") {
			continue
		}
		m := metric.FindStringSubmatch(line)
		if m == nil {
			t.Errorf("not in text form: %s", line)
			continue
		}
		got[m[1]+m[2]] = m[3]
	}
	for name, want := range map[string]string{
		`hotdeploy_daemon_info{service="echo",version="test"}`: "1",
		`hotdeploy_serving`:                                                                             "1",
		`hotdeploy_upgrade_in_flight`:                                                                   "0",
		`hotdeploy_crashes_total`:                                                                       "0",
		`hotdeploy_upgrades_total{kind="push",outcome="done"}`:                                          "2",
		`hotdeploy_generation_info{generation="1",release="1",state="draining"}`:                        "1",
		`hotdeploy_generation_info{generation="2",release="2+three_1.0",state="serving"}`:               "1",
		`hotdeploy_generation_connections{generation="1",release="1",state="draining"}`:                 "7",
		`hotdeploy_generation_connections{generation="2",release="2+three_1.0",state="serving"}`:        "0",
		`hotdeploy_generation_processes{generation="1",release="1",state="draining"}`:                   "1",
		`hotdeploy_generation_resident_bytes{generation="2",release="2+three_1.0",state="serving"}`:     "~",
		`hotdeploy_generation_start_time_seconds{generation="2",release="2+three_1.0",state="serving"}`: "~",
		`hotdeploy_daemon_resident_bytes`:                                                               "~",
	} {
		if have, ok := got[name]; !ok || (want != have && (want != "~" || have == "0")) {
			t.Errorf("%s is %q, not %q", name, have, want)
		}
	}
	stopLoad(t, l)
	if _, err := r.client.Stop(r.ctx(), api.StopRequest{By: "tester"}); err != nil {
		t.Fatal(err)
	}
	if text := r.metrics(); !strings.Contains(text, "hotdeploy_serving 0\n") || strings.Contains(text, "hotdeploy_generation") {
		t.Errorf("after a stop:\n%s", text)
	}
}

// quietRecorder is what a handler writes to when there is no connection. A stream's first flush ends its request.
type quietRecorder struct {
	header http.Header
	status int
	body   bytes.Buffer
	end    func()
}

func (q *quietRecorder) Header() http.Header { return q.header }
func (q *quietRecorder) WriteHeader(status int) {
	if q.status == 0 {
		q.status = status
	}
}
func (q *quietRecorder) Write(b []byte) (int, error) { q.WriteHeader(200); return q.body.Write(b) }
func (q *quietRecorder) Flush()                      { q.end() }

// Whatever comes in, to whatever path: the answer is 2xx or an api.Error, and the daemon is well afterwards.
func FuzzControlRequest(f *testing.F) {
	for _, seed := range []struct{ method, target, body string }{
		{"GET", "/v1/status", ""}, {"GET", "/v1/releases", ""}, {"GET", "/metrics", ""}, {"GET", "/v1/events?since=0&follow=1", ""},
		{"GET", "/v1/logs?lines=-1&release=1", ""}, {"POST", "/v1/uploads", `{"format":1,"service":"echo","version":"1","spec":{},"files":[]}`},
		{"POST", "/v1/uploads/" + strings.Repeat("ab", 32) + "/complete", ""}, {"POST", "/v1/upgrades", `{"kind":"push","version":"1","digest":"","by":"x"}`},
		{"POST", "/v1/upgrades", `{"kind":"rollback"}`}, {"GET", "/v1/upgrades/%2e%2e%2f", ""}, {"DELETE", "/v1/upgrades/x", ""},
		{"POST", "/v1/start", `{"by":"x"}`}, {"POST", "/v1/stop", `{"by":"x","now":true}`}, {"DELETE", "/v1/generations/1?now=1", ""},
		{"OPTIONS", "*", ""}, {"CONNECT", "host:1", ""}, {"GET", "//v1//status", ""}, {"", "", ""}, {"GET", "/v1/status/", ""}, {"HEAD", "/v1/status", ""},
	} {
		f.Add(seed.method, seed.target, []byte(seed.body))
	}
	dir := f.TempDir()
	s, err := New(Options{Config: config.Daemon{Service: "echo", Root: filepath.Join(dir, "root"), RunDir: dir}, Log: log.New(io.Discard, "", 0)})
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	f.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			f.Error(err)
		}
	})
	for started := false; !started; {
		_, err := os.Stat(ControlSocket(dir))
		s.do(func() { started = err == nil })
	}
	handler := s.routes()
	f.Fuzz(func(t *testing.T, method, target string, body []byte) {
		u, err := url.Parse(target)
		if err != nil {
			t.Skip()
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		req := (&http.Request{Method: method, URL: u, RequestURI: target, Host: "control", Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body))}).WithContext(ctx)
		w := &quietRecorder{header: http.Header{}, end: cancel}
		handler.ServeHTTP(w, req)
		e := new(api.Error)
		if err := json.Unmarshal(w.body.Bytes(), e); w.status/100 != 2 && (err != nil || e.Code == "" || e.Message == "" || e.HTTPStatus() != w.status) {
			t.Errorf("%s %q: %d %q", method, target, w.status, w.body.Bytes())
		}
		if st := s.status(); st.API != api.Version || len(st.Generations) != 0 {
			t.Errorf("after %s %q: %+v", method, target, st)
		}
	})
}

// The same at the level of bytes: what is no request must hurt nobody either.
func FuzzControlBytes(f *testing.F) {
	f.Add([]byte("GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n"))
	f.Add([]byte("POST /v1/stop HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"by\"\r\n"))
	f.Add([]byte("\x16\x03\x01"))
	r := emptyRig(f)
	r.adapt = func(s *Supervisor) { s.patience = generous() } // the peer's end of file is what ends a request that is none
	r.start()
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := net.Dial("unix", ControlSocket(r.cfg.RunDir))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		go func() {
			c.Write(b)
			c.(*net.UnixConn).CloseWrite()
		}()
		io.Copy(io.Discard, c)
		if _, err := r.client.Status(context.Background()); err != nil {
			t.Fatal(err)
		}
	})
}
