package main

import (
	_ "embed"
	"encoding/binary"
	"fmt"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"github.com/hotdeploy/hotdeploy/upgrade"
)

//go:embed page.html
var page []byte

// sendPage answers with the page that shows one connection in a browser.
func sendPage(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Write(page)
}

// word is what the page is told: an answer to what it said, or a tick that it did not ask for.
type word struct {
	V          string `json:"v"`
	Generation string `json:"generation"`
	Ticks      uint64 `json:"ticks"`   // said so far
	Answers    uint64 `json:"answers"` // given so far
	Echo       string `json:"echo,omitempty"`
}

// talk is one connection of the page: the handler answers, another goroutine ticks.
type talk struct {
	conn *websocket.Conn

	mu   sync.Mutex // protects what follows, and keeps writes apart
	last word
}

const tickEvery = 30 * time.Millisecond

var compressing = websocket.Upgrader{EnableCompression: true}

// live talks in both directions. Its order at the end is what matters: the ticking has ended before the connection is
// closed, so that nothing is counted that is not written, and both counters are final when they are saved.
func live(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Accept") == "text/event-stream" {
		stream(w, r)
		return
	}
	t := &talk{last: word{V: version, Generation: os.Getenv("HOTDEPLOY_GENERATION")}}
	s := upgrade.SessionOf(r.Context())
	if _, state := s.State(); len(state) == 16 {
		t.last.Ticks, t.last.Answers = binary.BigEndian.Uint64(state), binary.BigEndian.Uint64(state[8:])
	}
	s.Save(uint32(stateVersion), func() ([]byte, error) {
		return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, t.last.Ticks), t.last.Answers), nil
	})
	var err error
	if t.conn, err = compressing.Upgrade(w, r, nil); err != nil {
		return
	}
	defer t.conn.Close()
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() { defer close(ended); t.tick(stop) }()
	defer func() { close(stop); <-ended }()
	for {
		_, text, err := t.conn.ReadMessage()
		if err != nil || t.answer(string(text)) != nil {
			return
		}
	}
}

func (t *talk) answer(text string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last.Answers++
	out := t.last
	out.Echo = text
	return t.conn.WriteJSON(out)
}

func (t *talk) tick(stop <-chan struct{}) {
	ticker := time.NewTicker(tickEvery)
	defer ticker.Stop()
	for {
		select {
		case <-stop:
			return
		case <-ticker.C:
		}
		t.mu.Lock()
		t.last.Ticks++
		err := t.conn.WriteJSON(t.last)
		t.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// stream is the ticks alone, as server-sent events: one answer that does not end. Its connection stays in the release that began it.
func stream(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	ticker := time.NewTicker(tickEvery)
	defer ticker.Stop()
	for n := 1; ; n++ {
		if _, err := fmt.Fprintf(w, "data: {\"n\": %d, \"v\": %q}\n\n", n, version); err != nil {
			return
		}
		if http.NewResponseController(w).Flush() != nil {
			return
		}
		select {
		case <-ticker.C:
		case <-r.Context().Done():
			return
		}
	}
}
