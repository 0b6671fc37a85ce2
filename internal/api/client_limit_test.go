package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// stuck answers the status as long as alive says so, and nothing else ever.
func stuck(t *testing.T, alive func() bool, header ...string) *Client {
	release := make(chan struct{})
	c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/status") && alive() {
			json.NewEncoder(w).Encode(Status{API: Version})
			return
		}
		if len(header) == 2 {
			w.Header().Set(header[0], header[1])
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
		}
		select {
		case <-r.Context().Done():
		case <-release:
		}
	}))
	t.Cleanup(func() { close(release) })
	c.within, c.every = 50*time.Millisecond, 20*time.Millisecond
	return c
}

func never() bool { return false }

func TestClient_StuckDaemon_NobodyWaitsForEver(t *testing.T) {
	c := stuck(t, never)
	for name, ask := range map[string]func(context.Context) error{
		"status":           func(ctx context.Context) error { _, err := c.Status(ctx); return err },
		"releases":         func(ctx context.Context) error { _, err := c.Releases(ctx); return err },
		"history":          func(ctx context.Context) error { _, err := c.History(ctx, 1); return err },
		"upgrade":          func(ctx context.Context) error { _, err := c.Upgrade(ctx, UpgradeRequest{}); return err },
		"retire":           func(ctx context.Context) error { return c.Retire(ctx, 1, false) },
		"metrics":          func(ctx context.Context) error { return c.Metrics(ctx, io.Discard) },
		"plan":             func(ctx context.Context) error { _, err := c.PlanUpload(ctx, nil); return err },
		"complete":         func(ctx context.Context) error { _, err := c.Complete(ctx, "ab"); return err },
		"plan of a bundle": func(ctx context.Context) error { _, err := c.PlanBundle(ctx, nil, ""); return err },
		"bundle": func(ctx context.Context) error {
			_, err := c.SendBundle(ctx, "ab", "1", 0, strings.NewReader("bytes"))
			return err
		},
		"discard": func(ctx context.Context) error { return c.Discard(ctx, "ab") },
		"cancel":  func(ctx context.Context) error { _, err := c.Cancel(ctx, "1"); return err },
		"stop":    func(ctx context.Context) error { _, err := c.Stop(ctx, StopRequest{}); return err },
		"start":   func(ctx context.Context) error { _, err := c.Start(ctx, StopRequest{}); return err },
		"logs":    func(ctx context.Context) error { return c.Logs(ctx, LogQuery{}, io.Discard) },
	} {
		err := ask(t.Context())
		if !errors.Is(err, ErrSilent) || !errors.Is(err, ErrLineLost) || strings.Contains(err.Error(), "line was lost") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What takes its time is waited for while the daemon answers other questions. That it is not when it does not: TestClient_StuckDaemon.
func TestClient_LongWork_IsWaitedForWhileTheDaemonLives(t *testing.T) {
	asked := make(chan struct{})
	c := stuck(t, func() bool { // until nobody asks any more
		select {
		case asked <- struct{}{}:
		case <-t.Context().Done():
		}
		return true
	})
	c.within = time.Minute // an answer may be late on a busy machine
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { _, err := c.Stop(ctx, StopRequest{}); done <- err }()
	for range 10 {
		select {
		case err := <-done:
			t.Fatalf("given up while the daemon lives: %v", err)
		case <-asked:
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// A bundle takes as long as its line takes, also when the daemon's answers do not come through behind it.
func TestClient_Bundle_TakesItsTime(t *testing.T) {
	c := stuck(t, never)
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() { _, err := c.SendBundle(t.Context(), "ab", "1", 0, r); done <- err }()
	tick := time.NewTicker(c.every / 4)
	defer tick.Stop()
	for began := time.Now(); time.Since(began) < 2*drainQuestions*c.within; <-tick.C {
		if _, err := w.Write([]byte{1}); err != nil {
			t.Fatalf("given up while it moves: %v", <-done)
		}
	}
	w.Close()
	if err := <-done; !errors.Is(err, ErrSilent) {
		t.Errorf("%v", err)
	}
}

func TestClient_EventsThatFallSilent_End(t *testing.T) {
	err := stuck(t, never, BeatHeader, "1").Events(t.Context(), 0, func(Event) error { return nil })
	if !errors.Is(err, ErrSilent) || !errors.Is(err, ErrLineLost) {
		t.Errorf("%v", err)
	}
	ctx, stop := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer stop()
	err = stuck(t, never, "X", "an older daemon, which does not beat").Events(ctx, 0, func(Event) error { return nil })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

func TestLineError_SaysOnceThatTheLineWasLost(t *testing.T) {
	err := lost("GET /x", errors.New("the line was lost: no answer from web-1 for 6s"))
	if got := err.Error(); got != "GET /x: the line was lost: no answer from web-1 for 6s" {
		t.Errorf("%q", got)
	}
}
