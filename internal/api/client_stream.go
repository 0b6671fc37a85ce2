package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Events calls fn for each event after since, as they happen, until ctx ends, fn returns an error (which is returned as it
// is) or the line is lost ([ErrLineLost], also when the daemon ends the stream).
func (c *Client) Events(ctx context.Context, since uint64, fn func(Event) error) error {
	const op = "GET /events"
	q := url.Values{"since": {strconv.FormatUint(since, 10)}, "follow": {"1"}}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	res, err := c.answer(ctx, http.MethodGet, prefix()+"/events?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	silence := silenceOf(res)
	dead := time.AfterFunc(silence, func() { cancel(silent(silence)) })
	defer dead.Stop()
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, maxEvent)
	for lines.Scan() {
		dead.Reset(silence)
		var e Event
		if len(lines.Bytes()) == 0 {
			continue // a sign of life
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("%s: event: %w", op, err)
		}
		if err := fn(e); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return lost(op, causeOf(ctx, err))
	}
	return lost(op, errStreamEnded)
}

// errStreamEnded is a daemon that has closed a stream that goes on for ever: it was stopped.
var errStreamEnded = errors.New("the daemon ended the stream of events")

// LogQuery chooses what Logs copies.
type LogQuery struct {
	Release string // a version; empty: all
	Lines   int    // at most that many of the past; 0: the daemon's default
	Follow  bool   // go on with what comes
}

// Logs copies the app's output to w, where the daemon holds it itself ([Daemon].Journal is false). With Follow it ends with ctx.
func (c *Client) Logs(ctx context.Context, query LogQuery, w io.Writer) error {
	q := url.Values{}
	if query.Release != "" {
		q.Set("release", query.Release)
	}
	if query.Lines > 0 {
		q.Set("lines", strconv.Itoa(query.Lines))
	}
	if query.Follow {
		q.Set("follow", "1")
	}
	ctx, stop := c.attend(ctx)
	defer stop()
	body, err := c.send(ctx, http.MethodGet, prefix()+"/logs?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	defer body.Close()
	out := &keepError{w: w}
	if _, err = io.Copy(out, body); err != nil && out.err == nil {
		return lost("GET /logs", causeOf(ctx, err))
	}
	return out.err
}

// keepError tells a failed write to our own output apart from a failed read of the line.
type keepError struct {
	w   io.Writer
	err error
}

func (k *keepError) Write(p []byte) (int, error) {
	n, err := k.w.Write(p)
	k.err = err
	return n, err
}

// Metrics copies the Prometheus text to w.
func (c *Client) Metrics(ctx context.Context, w io.Writer) error {
	ctx, stop := c.limit(ctx)
	defer stop()
	body, err := c.send(ctx, http.MethodGet, "/metrics", nil)
	if err != nil {
		return err
	}
	defer body.Close()
	b, err := readAll(body, maxMetrics)
	if err != nil {
		return lost("GET /metrics", causeOf(ctx, err))
	}
	_, err = w.Write(b)
	return err
}
