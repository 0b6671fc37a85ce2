package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Why a request failed, as told by RequestFailures.
const (
	refused    = "refused"     // nobody listened
	reset      = "reset"       // the connection was torn down
	cut        = "closed"      // it ended before the answer did
	timedOut   = "timeout"     // no end within RequestTimeout
	badStatus  = "status"      // answered, but not with 200
	overloaded = "in flight"   // too many unanswered ones to make another
	local      = "local limit" // this machine had no port or descriptor left
	other      = "other"
)

// maxVersions bounds the map of versions; what comes beyond is "more".
const maxVersions = 100

// requests makes the new connections.
type requests struct {
	opts    Options
	notes   *notes
	began   time.Time
	samples samples

	running sync.WaitGroup
	abort   context.CancelFunc // of ctx, which all running requests share
	ctx     context.Context

	mu                    sync.Mutex // protects what follows
	inFlight              int
	ok, failed, abandoned int64
	failures, versions    map[string]int64
	late                  time.Duration
	marks                 []mark // by the start of a request, since Start
}

func newRequests(ctx context.Context, o Options, n *notes) *requests {
	r := &requests{opts: o, notes: n, began: n.began, failures: map[string]int64{}, versions: map[string]int64{}}
	r.ctx, r.abort = context.WithCancel(ctx)
	return r
}

// due starts n requests and does not wait for them.
func (r *requests) due(n int, late time.Duration) {
	r.mu.Lock()
	room := min(n, maxInFlight-r.inFlight)
	r.inFlight += room
	r.late = max(r.late, late)
	r.mu.Unlock()
	began := time.Now()
	for range room {
		r.running.Go(func() { r.one(began) })
	}
	for range n - room {
		r.fail(overloaded, fmt.Errorf("%d requests are unanswered", maxInFlight))
	}
}

// one is one connection with one request, which counts from began.
func (r *requests) one(began time.Time) {
	defer func() {
		r.mu.Lock()
		r.inFlight--
		r.marks = fire(r.marks, int64(began.Sub(r.began)))
		r.mu.Unlock()
	}()
	ctx, cancel := context.WithTimeout(r.ctx, r.opts.RequestTimeout)
	defer cancel()
	version, took, err := r.ask(ctx, began)
	switch {
	case err == nil:
		r.samples.add(began.Sub(r.began), took)
		r.succeed(version)
	case r.ctx.Err() != nil:
		r.abandon()
	case ctx.Err() != nil:
		r.fail(timedOut, fmt.Errorf("no end after %s: %w", r.opts.RequestTimeout, err))
	default:
		r.fail(reason(err), err)
	}
}

// errStatus: the server answered, but not with 200.
var errStatus = errors.New("wrong status")

// ask makes the connection, and reads on after the answer to the end of it: a
// server that resets what it has answered has not finished either.
func (r *requests) ask(ctx context.Context, began time.Time) (version string, took time.Duration, err error) {
	conn, err := r.opts.Dial(ctx, "tcp", r.opts.Addr)
	if err != nil {
		return "", 0, err
	}
	defer conn.Close()
	// Closing works for connections without deadlines as well.
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", r.opts.RequestPath, r.opts.Addr); err != nil {
		return "", 0, err
	}
	in := bufio.NewReaderSize(conn, 1024)
	version, err = readAnswer(in)
	if err != nil {
		return "", 0, err
	}
	took = time.Since(began)
	if _, err := io.Copy(io.Discard, in); err != nil {
		return "", 0, fmt.Errorf("after the answer: %w", err)
	}
	return version, took, nil
}

func readAnswer(in *bufio.Reader) (version string, err error) {
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%w: %s: %.80q", errStatus, resp.Status, body)
	}
	return strings.TrimSpace(string(body)), nil
}

// reason sorts a failure. A refused dial wraps ECONNREFUSED on any platform.
func reason(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, errStatus):
		return badStatus
	case errors.Is(err, syscall.ECONNREFUSED):
		return refused
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return reset
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return cut
	case errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return local
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return timedOut
	default:
		return other
	}
}

func (r *requests) succeed(version string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ok++
	if _, known := r.versions[version]; !known && len(r.versions) >= maxVersions {
		version = "more"
	}
	r.versions[version]++
}

func (r *requests) fail(why string, err error) {
	r.notes.add("request: %s: %v", why, err)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed++
	r.failures[why]++
}

// abandon: we were told to end before the answer could come.
func (r *requests) abandon() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.abandoned++
}

// settle waits for the answers that are due; when ctx ends it gives them up.
func (r *requests) settle(ctx context.Context) {
	defer r.abort()
	defer context.AfterFunc(ctx, r.abort)()
	r.running.Wait()
}

func (r *requests) report(to *Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	to.RequestsOK, to.RequestsFailed, to.RequestsDue = r.ok, r.failed, r.abandoned+int64(r.inFlight)
	to.RequestFailures, to.RequestVersions = maps.Clone(r.failures), maps.Clone(r.versions)
	to.DriverLate = max(to.DriverLate, r.late)
}
