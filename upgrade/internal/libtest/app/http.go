package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"
)

// gate is closed until the test opens it.
var gate = &barred{opened: make(chan struct{})}

type barred struct {
	once   sync.Once
	opened chan struct{}
}

func (b *barred) open() { b.once.Do(func() { close(b.opened) }) }

func httpRoutes(mux *http.ServeMux) {
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { sign(w, r.URL.Path) })
	mux.HandleFunc("/slow", slow)
	mux.HandleFunc("/upload", upload)
	mux.HandleFunc("/events", events)
	mux.HandleFunc("/lines", lines)
}

// sign answers with who we are, and a text.
func sign(w io.Writer, text string) { fmt.Fprintf(w, "%d %s", os.Getpid(), text) }

// slow answers when the gate is open; an interim answer tells the client that it has begun.
func slow(w http.ResponseWriter, r *http.Request) {
	w.WriteHeader(http.StatusEarlyHints)
	select {
	case <-gate.opened:
		sign(w, "slow")
	case <-r.Context().Done():
		sign(w, "cancelled")
	}
}

// upload answers with the digest of the body.
func upload(w http.ResponseWriter, r *http.Request) {
	h := sha256.New()
	n, err := io.Copy(h, r.Body)
	sign(w, fmt.Sprintf("%d %x %v %v", n, h.Sum(nil), err, r.Context().Err()))
}

// events sends numbered server-sent events until the client leaves.
func events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	for n := 0; ; n++ {
		fmt.Fprintf(w, "data: %d %d\n\n", os.Getpid(), n)
		http.NewResponseController(w).Flush()
		select {
		case <-time.After(time.Millisecond):
		case <-r.Context().Done():
			return
		}
	}
}

// lines takes the connection over for a protocol of its own: each line comes back.
func lines(w http.ResponseWriter, _ *http.Request) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: lines\r\nConnection: Upgrade\r\n\r\n")
	in := rw.Reader
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		io.WriteString(c, line)
	}
}
