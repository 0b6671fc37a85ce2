package main

import (
	_ "embed"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"
)

//go:embed page.html
var page []byte

func (a *app) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /version", a.serveVersion)
	mux.HandleFunc("GET /healthz", a.serveHealth)
	mux.HandleFunc("GET /slow", serveSlow)
	mux.HandleFunc("GET /ws", a.serveWebSocket)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Write(page)
	})
	return a.signed(mux)
}

// signed tells in every answer which process gave it.
func (a *app) signed(next http.Handler) http.Handler {
	pid := strconv.Itoa(os.Getpid())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Generation", a.cfg.generation)
		h.Set("X-Pid", pid)
		if buildMark != "" {
			h.Set("X-Build-Mark", buildMark)
		}
		next.ServeHTTP(w, r)
	})
}

func (a *app) serveVersion(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	io.WriteString(w, a.cfg.version)
}

func (a *app) serveHealth(w http.ResponseWriter, _ *http.Request) {
	if a.unhealthy.Load() {
		http.Error(w, "unhealthy: told to be", http.StatusServiceUnavailable)
		return
	}
	io.WriteString(w, "ok\n")
}

// maxSlow bounds what a client may ask for.
const maxSlow = time.Minute

// serveSlow answers after ?for=DURATION: a request that is in the middle of
// its work when the app is told to stop.
func serveSlow(w http.ResponseWriter, r *http.Request) {
	d, err := time.ParseDuration(r.URL.Query().Get("for"))
	if err != nil || d < 0 || d > maxSlow {
		http.Error(w, fmt.Sprintf("for=%q: want a duration up to %s", r.URL.Query().Get("for"), maxSlow), http.StatusBadRequest)
		return
	}
	select {
	case <-time.After(d):
		io.WriteString(w, "slow but there\n")
	case <-r.Context().Done():
	}
}
