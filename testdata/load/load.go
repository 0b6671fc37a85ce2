package load

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// openers is how many WebSockets are opened at a time: enough to be quick, few
// enough that the opening is no test of the listen queue.
const openers = 64

// Load is running load. Its methods may be called from any goroutine.
type Load struct {
	opts     Options
	notes    *notes
	sockets  []*socket
	requests *requests

	ctx    context.Context    // ends the sending and the opening
	cancel context.CancelFunc // of ctx
	work   sync.WaitGroup     // pacers and openers

	opened  chan struct{} // closed when every WebSocket is open or failed
	openErr error         // the first failure; read after opened

	unhook   func() bool // Start's ctx no longer stops us
	stopping sync.Once
	final    Report // read after stopping

	mu   sync.Mutex // protects late
	late time.Duration
}

// Start begins to open the WebSockets and to make new connections, and returns
// at once. Call Stop in the end; if ctx ends before, everything is torn down
// and the report says so.
func Start(ctx context.Context, o Options) (*Load, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	n := &notes{began: time.Now()}
	l := &Load{opts: o, notes: n, requests: newRequests(ctx, o, n), opened: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancel(ctx)
	for id := range o.WebSockets {
		l.sockets = append(l.sockets, newSocket(id, o.Held, n))
	}
	l.work.Go(l.open)
	if o.WebSockets > 0 {
		l.work.Go(func() { pace(l.ctx, o.MessageInterval/time.Duration(o.WebSockets), l.sender()) })
	}
	if o.NewConnsPerSecond > 0 {
		l.work.Go(func() { pace(l.ctx, time.Second/time.Duration(o.NewConnsPerSecond), l.requests.due) })
	}
	l.unhook = context.AfterFunc(ctx, func() { l.stop(ctx) })
	return l, nil
}

// open opens all WebSockets, openers at a time.
func (l *Load) open() {
	defer close(l.opened)
	dialer := &websocket.Dialer{
		NetDialContext:  l.opts.Dial,
		ReadBufferSize:  512,
		WriteBufferSize: 512,
		WriteBufferPool: &sync.Pool{},
	}
	todo := make(chan *socket)
	var workers sync.WaitGroup
	for range min(openers, len(l.sockets)) {
		workers.Go(func() {
			for s := range todo {
				l.openOne(s, dialer)
			}
		})
	}
	for _, s := range l.sockets {
		todo <- s
	}
	close(todo)
	workers.Wait()
}

func (l *Load) openOne(s *socket, d *websocket.Dialer) {
	ctx, cancel := context.WithTimeout(l.ctx, l.opts.OpenTimeout)
	defer cancel()
	if err := s.open(ctx, d, "ws://"+l.opts.Addr+"/ws"); err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.openErr == nil {
			l.openErr = err
		}
	}
}

// sender is the shared scheduler's step: the WebSockets take turns, so that
// each has one every MessageInterval and their messages are spread over it.
func (l *Load) sender() func(n int, late time.Duration) {
	turn := 0
	return func(n int, late time.Duration) {
		for range n {
			l.sockets[turn].send(open)
			turn = (turn + 1) % len(l.sockets)
		}
		l.mu.Lock()
		l.late = max(l.late, late)
		l.mu.Unlock()
	}
}

// Ready waits until every WebSocket is open and its first message echoed. It
// returns the first failure, if any, or that of ctx.
func (l *Load) Ready(ctx context.Context) error {
	select {
	case <-l.opened:
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.openErr
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Snapshot is the report so far. Messages and requests under way are "due".
func (l *Load) Snapshot() Report { return l.report() }

// Latency summarises the answered requests that began in [from, to).
func (l *Load) Latency(from, to time.Time) Latency {
	return l.requests.samples.between(from.Sub(l.notes.began), to.Sub(l.notes.began))
}

// Stop ends the sending, waits until ctx for every echo and answer that is
// still due, reports, and closes the WebSockets. What ctx cut off is reported
// as due. A second call returns the same report.
func (l *Load) Stop(ctx context.Context) Report {
	l.unhook()
	return l.stop(ctx)
}

func (l *Load) stop(ctx context.Context) Report {
	l.stopping.Do(func() {
		if err := l.ctx.Err(); err != nil {
			defer func() { l.final.Aborted = err.Error() }()
		}
		l.cancel()
		l.work.Wait()
		l.requests.settle(ctx)
		l.settle(ctx)
		l.final = l.report()
		l.leave(ctx)
	})
	return l.final
}

func (l *Load) settle(ctx context.Context) {
	for _, s := range l.sockets {
		s.settle()
	}
	for _, s := range l.sockets {
		select {
		case <-s.settled:
		case <-ctx.Done():
			return
		}
	}
}

// goodbye bounds the closing handshakes, which tell nothing any more.
const goodbye = 5 * time.Second

func (l *Load) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, goodbye)
	defer cancel()
	for _, s := range l.sockets {
		s.leave()
	}
	for _, s := range l.sockets {
		select {
		case <-s.ended:
		case <-ctx.Done():
			if s.conn != nil { // else it has ended: both were so
				s.conn.Close()
			}
			<-s.ended
		}
	}
}

// errNoLoad: nothing was held and nothing asked, which proves nothing.
var errNoLoad = errors.New("no WebSocket was held and no request made")
