package libtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ctl "github.com/hotdeploy/hotdeploy/upgrade/control"
)

// newTestSite serves a first release until the test ends, and then all of its generations must end in order. set are variables NAME=value for all of them.
func newTestSite(t *testing.T, set ...string) *site {
	t.Helper()
	s, err := newSite(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s.set = set
	t.Cleanup(func() {
		s.term(s.serving)
		if err := s.settle(patience); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(s.log())
		}
		s.close()
	})
	s.mustDeploy(t, "rolling")
	return s
}

func (s *site) mustDeploy(t *testing.T, mode string) ctl.Message {
	t.Helper()
	m, err := s.deploy(release{app: app(t), library: "gorilla", mode: mode})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// pid is of the generation that serves.
func (s *site) pid() int { return s.serving.cmd.Process.Pid }

// caller is a real HTTP client with at most one connection at a time.
type caller struct {
	http.Client
	url string
	cut atomic.Pointer[string] // how a connection ended that the client had not closed; nil: none did
}

func newCaller(t *testing.T, s *site) *caller {
	c := &caller{url: "http://" + s.addr}
	tr := &http.Transport{MaxConnsPerHost: 1, ExpectContinueTimeout: patience, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx, network, addr)
		return &ownConn{Conn: nc, caller: c}, err
	}}
	c.Transport = tr
	t.Cleanup(tr.CloseIdleConnections)
	return c
}

// ownConn tells a connection that was ended for its client from one that the client closed: http.Transport closes one by itself when it hears
// of an answer 50 ms before it hears that it had written the request (wroteRequest), which happens on a machine with too much to do.
type ownConn struct {
	net.Conn
	caller *caller
	closed atomic.Bool
}

func (c *ownConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil && !c.closed.Load() {
		s := fmt.Sprintf("%s: %v at %s", c.LocalAddr(), err, time.Now())
		c.caller.cut.CompareAndSwap(nil, &s)
	}
	return n, err
}

func (c *ownConn) Close() error {
	c.closed.Store(true)
	return c.Conn.Close()
}

// kept checks that nobody but the client has ended its connection.
func (c *caller) kept(t *testing.T) {
	t.Helper()
	if s := c.cut.Load(); s != nil {
		t.Errorf("a connection was not kept: %s", *s)
	}
}

// get returns the answer's body, of whom it is, and the rest.
func (c *caller) get(ctx context.Context, path string) (pid int, text string, err error) {
	return c.do(ctx, "GET", path, nil, "")
}

func (c *caller) do(ctx context.Context, method, path string, body io.Reader, expect string) (pid int, text string, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, body)
	if err != nil {
		return 0, "", err
	}
	if expect != "" {
		req.Header.Set("Expect", expect)
	}
	res, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	return signature(res)
}

func signature(res *http.Response) (pid int, text string, err error) {
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, "", err
	}
	if _, err := fmt.Sscan(string(b), &pid); err != nil {
		return 0, "", fmt.Errorf("answer %q: %w", b, err)
	}
	_, text, _ = strings.Cut(string(b), " ")
	return pid, text, nil
}

// post uploads n bytes and checks what came of them.
func (c *caller) post(ctx context.Context, n int, expect string) (pid int, err error) {
	body := text[:n]
	pid, got, err := c.do(ctx, "POST", "/upload", bytes.NewReader(body), expect)
	if want := uploaded(body); err == nil && got != want {
		err = fmt.Errorf("uploaded: %q, want %q", got, want)
	}
	return pid, err
}

// uploaded is what the server says of a body that it got whole, while its context was alive.
func uploaded(body []byte) string {
	return fmt.Sprintf("%d %x <nil> <nil>", len(body), sha256.Sum256(body))
}

// TestHTTP_KeepAlive_NoRequestFails: clients that use their one connection all the time, and one that rests, keep it over all deploys.
func TestHTTP_KeepAlive_NoRequestFails(t *testing.T) {
	t.Parallel()
	s := newTestSite(t)
	resting := newCaller(t, s)
	if _, _, err := resting.get(t.Context(), "/"); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var asking sync.WaitGroup
	var requests tally
	callers := []*caller{resting}
	for i := range 8 {
		c := newCaller(t, s)
		callers = append(callers, c)
		asking.Go(func() {
			if err := c.keepAsking(t.Context(), rand.New(rand.NewPCG(*seedFlag, uint64(i))), stop, requests.add); err != nil {
				t.Errorf("client %d, seed %d: %v", i, *seedFlag, err)
				requests.fail()
			}
		})
	}
	moved := 0
	for n := range 12 {
		<-requests.after(100)
		m := s.mustDeploy(t, mode(n))
		for why := range m.Kept {
			if !slices.Contains(strained, why) {
				t.Errorf("connections stayed: %v", m.Kept)
			}
		}
		moved += m.Moved
	}
	<-requests.after(100)
	close(stop)
	asking.Wait()
	for i, c := range callers {
		if pid, _, err := c.get(t.Context(), "/"); pid != s.pid() || err != nil {
			t.Errorf("client %d: answered by %d instead of %d: %v", i, pid, s.pid(), err)
		}
		c.kept(t)
	}
	t.Logf("%d requests, %d connections moved", requests.count(), moved)
}

// keepAsking makes requests of all kinds, one after the other.
func (c *caller) keepAsking(ctx context.Context, rng *rand.Rand, stop <-chan struct{}, asked func()) error {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		var err error
		switch rng.IntN(4) {
		case 0:
			_, err = c.post(ctx, rng.IntN(300_000), "")
		case 1:
			_, err = c.post(ctx, rng.IntN(300_000), "100-continue")
		default:
			_, _, err = c.get(ctx, "/")
		}
		if err != nil {
			return err
		}
		asked()
	}
}

// begun makes a context that tells when the server has sent an interim answer: then it works on the request.
func begun(ctx context.Context) (context.Context, <-chan struct{}) {
	c := make(chan struct{}, 8)
	trace := &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error {
		c <- struct{}{}
		return nil
	}}
	return httptrace.WithClientTrace(ctx, trace), c
}

// TestHTTP_InFlight_NoticesNothing: requests that a deploy finds half way are answered by the release that they came to, whose contexts live; their
// connections follow as soon as they are idle.
func TestHTTP_InFlight_NoticesNothing(t *testing.T) {
	t.Parallel()
	s := newTestSite(t)
	old := s.serving
	var all sync.WaitGroup
	slow, long, waiting, two := newCaller(t, s), newCaller(t, s), newCaller(t, s), newCaller(t, s)
	two.Transport.(*http.Transport).Protocols = new(http.Protocols)
	two.Transport.(*http.Transport).Protocols.SetUnencryptedHTTP2(true)

	for _, c := range []*caller{slow, two} {
		ctx, working := begun(t.Context())
		all.Go(func() {
			if pid, text, err := c.get(ctx, "/slow"); pid != old.cmd.Process.Pid || text != "slow" || err != nil {
				t.Errorf("a slow request: %q by %d, %v", text, pid, err)
			}
		})
		<-working
	}
	first, body := newPart(), text[:3<<20]
	upload := func(c *caller, p *part, expect string) {
		pid, got, err := c.do(t.Context(), "POST", "/upload", p, expect)
		if pid != old.cmd.Process.Pid || got != uploaded(body) || err != nil {
			t.Errorf("an upload (%s): %q by %d, %v", expect, got, pid, err)
		}
	}
	all.Go(func() { upload(long, first, "") })
	first.give(body[:1<<20])
	continued := newPart()
	all.Go(func() { upload(waiting, continued, "100-continue") })
	<-continued.asked // the server wants the body

	m := s.mustDeploy(t, "rolling")
	if m.Moved != 0 || m.Kept["busy"] != 3 || m.Kept["http/2"] != 1 || len(m.Kept) != 2 {
		t.Errorf("moved %d, kept %v", m.Moved, m.Kept)
	}
	first.give(body[1<<20:])
	first.end()
	continued.give(body)
	continued.end()
	fmt.Fprintln(old.stdin, "open the gate")
	all.Wait()
	for i, c := range []*caller{slow, long, waiting} {
		pid := 0
		for by := time.Now().Add(patience); pid != s.pid() && time.Now().Before(by); { // the old release may not have heard yet that it shall end
			var err error
			if pid, _, err = c.get(t.Context(), "/"); err != nil {
				t.Fatalf("client %d: %v", i, err)
			}
		}
		if pid != s.pid() {
			t.Errorf("client %d: the connection has not followed", i)
		}
		c.kept(t)
	}
	if pid, _, err := two.get(t.Context(), "/"); pid != old.cmd.Process.Pid || err != nil {
		t.Errorf("HTTP/2 was answered by %d, %v", pid, err)
	}
	two.CloseIdleConnections()
}

// part is a body that comes in parts.
type part struct {
	*io.PipeReader
	w     *io.PipeWriter
	once  sync.Once
	asked chan struct{} // closed when the first part is wanted
}

func newPart() *part {
	r, w := io.Pipe()
	return &part{PipeReader: r, w: w, asked: make(chan struct{})}
}

func (p *part) Read(b []byte) (int, error) {
	p.once.Do(func() { close(p.asked) })
	return p.PipeReader.Read(b)
}

func (p *part) give(b []byte) { p.w.Write(b) }
func (p *part) end()          { p.w.Close() }
