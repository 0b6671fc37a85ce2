package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Limits on what a daemon may answer. More than that is an error, not a cut answer.
const (
	maxAnswer  = 64 << 20 // a plan for the largest manifest
	maxEvent   = 1 << 20  // one line of the event stream
	maxMetrics = 16 << 20
	maxNewer   = 3 // majors of the API that are looked for beyond ours
)

// Dial opens one connection to the daemon's control socket. The client closes what it gets.
type Dial func(ctx context.Context) (net.Conn, error)

// Client asks one daemon. It is safe for concurrent use. A failure is either an [*Error], which is the daemon's answer, or a
// [*LineError], which tells whether the request may have arrived. No method retries what may have arrived.
type Client struct {
	http *http.Client
	idle func()

	within time.Duration // answerWithin
	every  time.Duration // aliveEvery
}

// NewClient returns a client that dials when it must and keeps connections for the next request. [Client.Close] lets go of them.
func NewClient(dial Dial) *Client {
	t := &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		DisableCompression: true,
		MaxIdleConns:       4,
	}
	return &Client{http: &http.Client{Transport: t}, idle: t.CloseIdleConnections, within: answerWithin, every: aliveEvery}
}

// Close closes connections that no request is using.
func (c *Client) Close() { c.idle() }

// Status asks what is there and what is serving. Of a daemon that speaks another API version only API and Daemon.Version are
// told: the rest may mean something else there. The caller compares.
func (c *Client) Status(ctx context.Context) (Status, error) {
	ctx, stop := c.limit(ctx)
	defer stop()
	raw, err := ask[json.RawMessage](ctx, c, http.MethodGet, "/status", nil)
	for v := 1; errors.Is(err, ErrNotFound) && v <= Version+maxNewer; v++ {
		raw, err = askAt[json.RawMessage](ctx, c, http.MethodGet, "/v"+strconv.Itoa(v)+"/status", nil)
	}
	if err != nil {
		return Status{}, err
	}
	var head struct {
		API    int `json:"api"`
		Daemon struct {
			Version string `json:"version"`
		} `json:"daemon"`
	}
	if err := json.Unmarshal(raw, &head); err != nil || head.API == 0 {
		return Status{}, ErrInternal.With("what answers at the control socket is not a hotdeploy daemon")
	}
	if head.API != Version {
		return Status{API: head.API, Daemon: Daemon{Version: head.Daemon.Version}}, nil
	}
	var st Status
	if err := json.Unmarshal(raw, &st); err != nil {
		return st, fmt.Errorf("the daemon's status: %w", err)
	}
	return st, nil
}

// Releases lists the complete releases on the host.
func (c *Client) Releases(ctx context.Context) ([]ReleaseInfo, error) {
	return ask[[]ReleaseInfo](ctx, c, http.MethodGet, "/releases", nil)
}

// What follows takes as long as it takes, while the daemon answers other questions: PlanUpload, Complete, PlanBundle, SendBundle, Cancel, Start,
// Stop, Logs.

// PlanUpload sends a manifest; the daemon checks whether this machine can take the release and tells what it still needs.
func (c *Client) PlanUpload(ctx context.Context, manifest []byte) (UploadPlan, error) {
	ctx, stop := c.attend(ctx)
	defer stop()
	return askAt[UploadPlan](ctx, c, http.MethodPost, prefix()+"/uploads", manifest)
}

// Complete says that everything planned has been sent. It may be asked again.
func (c *Client) Complete(ctx context.Context, digest string) (ReleaseInfo, error) {
	ctx, stop := c.attend(ctx)
	defer stop()
	return askAt[ReleaseInfo](ctx, c, http.MethodPost, prefix()+"/uploads/"+url.PathEscape(digest)+"/complete", nil)
}

// Discard takes back a release that was uploaded and will not be started after all. One that was there before, serves or is about to stays, and that
// is no error.
func (c *Client) Discard(ctx context.Context, digest string) error {
	ctx, stop := c.attend(ctx)
	defer stop()
	_, err := askAt[json.RawMessage](ctx, c, http.MethodDelete, prefix()+"/uploads/"+url.PathEscape(digest), nil)
	return err
}

// DeltaType is the content type of what comes as a delta (package delta).
const DeltaType = "application/x-hotdeploy-delta"

// PlanBundle is PlanUpload for whoever sends a bundle, see [Daemon.Bundles]. The manifest comes as a delta, from the one of the release
// with digest base, or from nothing if that is empty.
func (c *Client) PlanBundle(ctx context.Context, manifest []byte, base string) (UploadPlan, error) {
	q := url.Values{"bundle": {"1"}}
	if base != "" {
		q.Set("base", base)
	}
	ctx, stop := c.attend(ctx)
	defer stop()
	return askAt[UploadPlan](ctx, c, http.MethodPost, prefix()+"/uploads?"+q.Encode(), content{DeltaType, bytes.NewReader(manifest)})
}

// SendBundle sends a bundle of an upload from offset on, and the daemon makes the release of it. After a lost line the plan tells where to
// go on.
func (c *Client) SendBundle(ctx context.Context, digest, id string, offset int64, r io.Reader) (ReleaseInfo, error) {
	path := "/uploads/" + url.PathEscape(digest) + "/bundles/" + url.PathEscape(id) + "?offset=" + strconv.FormatInt(offset, 10)
	m := &moving{r: r}
	ctx, stop := c.attendTo(ctx, m.since, drainQuestions)
	defer stop()
	return askAt[ReleaseInfo](ctx, c, http.MethodPut, prefix()+path, content{"application/octet-stream", m})
}

// drainQuestions: what the line still holds when the last byte of a bundle was handed to it, some megabytes, takes minutes where it is thin.
const drainQuestions = 10

// moving tells whether anything was read since it was asked last.
type moving struct {
	r    io.Reader
	read atomic.Bool
}

func (m *moving) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	if n > 0 {
		m.read.Store(true)
	}
	return n, err
}

func (m *moving) since() bool { return m.read.Swap(false) }

// content is a body that is no JSON.
type content struct {
	kind string
	r    io.Reader
}

// Upgrade begins an upgrade and returns while it is in flight. It goes on if the caller leaves.
func (c *Client) Upgrade(ctx context.Context, r UpgradeRequest) (Upgrade, error) {
	return ask[Upgrade](ctx, c, http.MethodPost, "/upgrades", r)
}

// GetUpgrade asks for an upgrade in flight or of the past.
func (c *Client) GetUpgrade(ctx context.Context, id string) (Upgrade, error) {
	return ask[Upgrade](ctx, c, http.MethodGet, "/upgrades/"+url.PathEscape(id), nil)
}

// History lists the newest upgrades that have ended, at most n, the newest first.
func (c *Client) History(ctx context.Context, n int) ([]Upgrade, error) {
	return ask[[]Upgrade](ctx, c, http.MethodGet, "/history?n="+strconv.Itoa(n), nil)
}

// Cancel takes an upgrade back and returns when it has ended: on either side of the switch, the Outcome tells which.
func (c *Client) Cancel(ctx context.Context, id string) (Upgrade, error) {
	ctx, stop := c.attend(ctx)
	defer stop()
	return askAt[Upgrade](ctx, c, http.MethodDelete, prefix()+"/upgrades/"+url.PathEscape(id), nil)
}

// Start starts the committed release of a stopped service.
func (c *Client) Start(ctx context.Context, r StopRequest) (Status, error) {
	ctx, stop := c.attend(ctx)
	defer stop()
	return askAt[Status](ctx, c, http.MethodPost, prefix()+"/start", r)
}

// Stop ends every generation; the daemon stays.
func (c *Client) Stop(ctx context.Context, r StopRequest) (Status, error) {
	ctx, stop := c.attend(ctx)
	defer stop()
	return askAt[Status](ctx, c, http.MethodPost, prefix()+"/stop", r)
}

// Replace lets the daemon make way for the binary that is installed now, while everything runs on. With an error nothing has changed. The one that
// asks is newer or older than the daemon, so the path has no version, and stays. [ErrNotFound]: the daemon is too old to be asked this.
func (c *Client) Replace(ctx context.Context, by string) (Status, error) {
	ctx, stop := c.attend(ctx)
	defer stop()
	return askAt[Status](ctx, c, http.MethodPost, "/daemon/replace", StopRequest{By: by})
}

// Retire ends one draining generation: its connections are closed over the time that its release asks for, or all at once.
func (c *Client) Retire(ctx context.Context, generation int, atOnce bool) error {
	path := "/generations/" + strconv.Itoa(generation)
	if atOnce {
		path += "?now=1"
	}
	_, err := ask[json.RawMessage](ctx, c, http.MethodDelete, path, nil)
	return err
}

// ask sends one request below our version's prefix that is answered at once, and reads its JSON answer.
func ask[T any](ctx context.Context, c *Client, method, path string, in any) (T, error) {
	ctx, stop := c.limit(ctx)
	defer stop()
	return askAt[T](ctx, c, method, prefix()+path, in)
}

// askAt asks at a whole path. An empty answer leaves T at its zero value.
func askAt[T any](ctx context.Context, c *Client, method, path string, in any) (T, error) {
	var out T
	body, err := c.send(ctx, method, path, in)
	if err != nil {
		return out, err
	}
	defer body.Close()
	b, err := readAll(body, maxAnswer)
	if err != nil {
		return out, lost(method+" "+path, causeOf(ctx, err))
	}
	if len(b) == 0 {
		return out, nil
	}
	if err := json.Unmarshal(b, &out); err != nil {
		return out, fmt.Errorf("%s %s: the daemon's answer: %w", method, path, err)
	}
	return out, nil
}

func prefix() string { return "/v" + strconv.Itoa(Version) }

// send returns the body of a good answer; the caller closes it.
func (c *Client) send(ctx context.Context, method, path string, in any) (io.ReadCloser, error) {
	res, err := c.answer(ctx, method, path, in)
	if err != nil {
		return nil, err
	}
	return res.Body, nil
}

// answer returns a good answer; the caller closes its body.
func (c *Client) answer(ctx context.Context, method, path string, in any) (*http.Response, error) {
	op := method + " " + path
	var connected atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	req, err := newRequest(ctx, method, path, in)
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, &LineError{Op: op, Sent: connected.Load(), Err: causeOf(ctx, unwrapURL(err))}
	}
	if res.StatusCode/100 == 2 {
		return res, nil
	}
	defer res.Body.Close()
	return nil, answered(op, res)
}

func newRequest(ctx context.Context, method, path string, in any) (*http.Request, error) {
	body := content{kind: "application/json"}
	switch in := in.(type) {
	case nil:
		body = content{}
	case content:
		body = in
	case []byte:
		body.r = bytes.NewReader(in)
	default:
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode request for %s: %w", path, err)
		}
		body.r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://hotdeploy"+path, body.r)
	if err != nil {
		return nil, fmt.Errorf("request for %s: %w", path, err)
	}
	if body.kind != "" {
		req.Header.Set("Content-Type", body.kind)
	}
	return req, nil
}

// answered turns an answer that is not 2xx into its Error.
func answered(op string, res *http.Response) error {
	b, err := readAll(res.Body, maxEvent)
	if err != nil {
		return lost(op, err)
	}
	e := new(Error)
	if json.Unmarshal(b, e) == nil && e.Code != "" {
		return e
	}
	if res.StatusCode == http.StatusNotFound || res.StatusCode == http.StatusMethodNotAllowed {
		return ErrNotFound.With("the daemon does not know " + op + "; it may be older than this command")
	}
	return ErrInternal.With(fmt.Sprintf("the daemon answered %s to %s: %.200q", res.Status, op, strings.TrimSpace(string(b))))
}

func readAll(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("answer longer than %d bytes", limit)
	}
	return b, err
}
