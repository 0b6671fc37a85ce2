package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// app is the serving process.
type app struct {
	cfg       config
	sockets   sockets
	server    *http.Server
	unhealthy atomic.Bool
	live      atomic.Int64 // WebSockets and line connections open now

	// held counts whatever must end before the process does: every connection
	// from its accept on.
	held sync.WaitGroup
	// loops are those that accept and read datagrams.
	loops sync.WaitGroup
}

func newApp(cfg config) (*app, error) {
	s, err := openSockets(cfg.addr, cfg.alsoListen)
	if err != nil {
		return nil, err
	}
	a := &app{cfg: cfg, sockets: s}
	a.unhealthy.Store(cfg.unhealthy)
	a.server = &http.Server{
		Handler:           a.routes(),
		ReadHeaderTimeout: 30 * time.Second,
		ConnState:         a.count,
		// A client that goes away in a handshake is nobody's news.
		ErrorLog: log.New(io.Discard, "", 0),
	}
	return a, nil
}

// serve starts accepting on everything and returns.
func (a *app) serve() {
	for _, ln := range a.sockets.http {
		a.loops.Go(func() { a.serveHTTP(ln) })
	}
	for _, ln := range a.sockets.lines {
		a.loops.Go(func() { a.serveLines(ln) })
	}
	for _, pc := range a.sockets.dgram {
		a.loops.Go(func() { echoDatagrams(pc) })
	}
}

func (a *app) serveHTTP(ln net.Listener) {
	if err := a.server.Serve(ln); !errors.Is(err, net.ErrClosed) {
		fmt.Fprintf(os.Stderr, "wsecho: error: serving %s: %v\n", ln.Addr(), err)
		os.Exit(1)
	}
}

// count holds a connection from its accept (the server calls this before it
// accepts the next) to its end, or to the WebSocket handler's own counting.
func (a *app) count(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		a.held.Add(1)
	case http.StateClosed, http.StateHijacked:
		a.held.Done()
	}
}

// untilStopped waits for SIGTERM and drains, or for a misbehaviour that ends
// the process.
func (a *app) untilStopped(term <-chan os.Signal, stderr io.Writer) int {
	exit := a.untilMisbehaved()
	for {
		select {
		case status := <-exit:
			fmt.Fprintf(stderr, "wsecho: told to exit with %d\n", status)
			return status
		case <-term:
			if a.cfg.ignoreSIGTERM {
				fmt.Fprintln(stderr, "wsecho: told to ignore SIGTERM")
				continue
			}
			if a.cfg.abrupt {
				return 0
			}
			return a.drain(exit, stderr)
		}
	}
}

// drain stops accepting and waits until every client has left; a misbehaviour
// by the clock still strikes.
//
// http.Server.Shutdown would lose requests: what was accepted but not yet read
// when it begins gets no answer, only the end of the connection. So the
// listeners are closed by us, and each connection ends after its next answer.
// Idle ones are ended now, as Shutdown does too.
func (a *app) drain(exit <-chan int, stderr io.Writer) int {
	a.sockets.close()
	a.loops.Wait() // what has been accepted is held; what we tell now is the truth
	a.server.SetKeepAlivesEnabled(false)
	done := make(chan struct{})
	go func() {
		a.held.Wait()
		close(done)
	}()
	a.notify(stderr, fmt.Sprintf("STOPPING=1\nSTATUS=draining %s, %d connections left", a.cfg.version, a.live.Load()))
	select {
	case <-done:
		return 0
	case status := <-exit:
		return status
	}
}

// close closes our copies; the queues live on with the next generation.
func (s sockets) close() {
	for _, ln := range append(s.http, s.lines...) {
		ln.Close()
	}
	for _, pc := range s.dgram {
		pc.Close()
	}
}

// notify tells the supervisor; without one, nobody.
func (a *app) notify(stderr io.Writer, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		fmt.Fprintf(stderr, "wsecho: warning: sd_notify: %v\n", err)
	}
}

// addrs is every address it serves on, HTTP first, by blanks.
func (a *app) addrs() string {
	var out []string
	for _, ln := range append(append([]net.Listener{}, a.sockets.http...), a.sockets.lines...) {
		out = append(out, ln.Addr().String())
	}
	for _, pc := range a.sockets.dgram {
		out = append(out, pc.LocalAddr().String())
	}
	return strings.Join(out, " ")
}
