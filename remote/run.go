package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/crypto/ssh"
)

const (
	maxStderr     = 4 << 10 // kept for errors
	stderrInError = 2 << 10
)

var errNoStatus = errors.New("the command ended without an exit status")

// Run runs a command on the host and waits for it. Each of argv arrives as
// one argument, whatever it contains. stdin may be nil, which is no input;
// stdout and stderr may be nil, which throws them away, but the end of
// standard error is kept for the error. They are not used after Run has
// returned; a Read of stdin may still be blocked then.
//
// The error is an *ExitError, ErrNeverRan, or ErrLineLost. When ctx ends, the
// command is told to terminate and Run returns at once with the error of
// ctx: whether the command obeys is not known.
func (s *Session) Run(ctx context.Context, argv []string, stdin io.Reader, stdout, stderr io.Writer) error {
	c, err := s.start(ctx, argv)
	if err != nil {
		return err
	}
	return c.run(ctx, stdin, stdout, stderr)
}

// Output runs a command without input and returns its standard output. More
// than limit bytes are an error; the command has run to its end then.
func (s *Session) Output(ctx context.Context, limit int, argv ...string) ([]byte, error) {
	out := &limited{limit: limit}
	err := s.Run(ctx, argv, nil, out, nil)
	if err == nil && out.cut {
		err = fmt.Errorf("%s on the host: more than %d bytes of output", argv[0], limit)
	}
	return out.Bytes(), err
}

// running is a command on the host, or the subsystem that stands in its
// place.
type running struct {
	s      *Session
	name   string // for errors
	kind   string // "exec" or "subsystem"
	ch     ssh.Channel
	stderr *limited // the last of it, where nobody else takes it

	ended chan struct{} // closed when no more requests come: the channel is closed
	exit  error         // written before ended is closed; errNoStatus if there was none
}

func (s *Session) start(ctx context.Context, argv []string) (*running, error) {
	line, err := commandLine(argv)
	if err != nil {
		return nil, neverRan("run a command on the host", err)
	}
	return s.request(ctx, argv[0], "exec", line)
}

// request opens a channel and asks for a command or a subsystem in it.
func (s *Session) request(ctx context.Context, name, kind, payload string) (*running, error) {
	ch, requests, err := s.openChannel(ctx, "session", nil)
	if err != nil {
		return nil, neverRan(name+" on the host", s.lost(ctx, err))
	}
	c := &running{s: s, name: name, kind: kind, ch: ch, stderr: &limited{limit: maxStderr, tail: true}, ended: make(chan struct{})}
	go c.follow(requests)
	type answer struct {
		ok  bool
		err error
	}
	answered := make(chan answer, 1)
	go func() { // ends with the channel
		ok, err := ch.SendRequest(kind, true, ssh.Marshal(struct{ Value string }{payload}))
		answered <- answer{ok, err}
	}()
	select {
	case a := <-answered:
		if a.err != nil { // it was sent and may have been begun
			return nil, fmt.Errorf("%s on the host: %w", name, s.lost(ctx, a.err))
		}
		if !a.ok {
			ch.Close()
			return nil, neverRan(name+" on the host", errors.New("the server refuses"))
		}
		return c, nil
	case <-ctx.Done():
		c.abandon()
		return nil, fmt.Errorf("%s on the host: %w", name, context.Cause(ctx))
	}
}

// follow reads what the server tells of the command until the channel ends.
func (c *running) follow(requests <-chan *ssh.Request) {
	defer close(c.ended)
	c.exit = errNoStatus
	for req := range requests {
		switch req.Type {
		case "exit-status":
			var p struct{ Status uint32 }
			if ssh.Unmarshal(req.Payload, &p) == nil {
				c.exit = c.exited(int(p.Status), "")
			}
		case "exit-signal":
			var p struct {
				Signal   string
				Core     bool
				Message  string
				Language string
			}
			if ssh.Unmarshal(req.Payload, &p) == nil {
				c.exit = c.exited(-1, printable(clip(p.Signal, 40)))
			}
		}
		if req.WantReply {
			req.Reply(false, nil)
		}
	}
}

func (c *running) exited(status int, signal string) error {
	if status == 0 {
		return nil
	}
	return &ExitError{Command: c.name, Status: status, Signal: signal}
}

// result is how the command ended. It blocks until that is known.
func (c *running) result(ctx context.Context) error {
	select {
	case <-c.ended:
	case <-ctx.Done():
		return fmt.Errorf("%s on the host: %w", c.name, context.Cause(ctx))
	}
	var exit *ExitError
	switch {
	case errors.As(c.exit, &exit):
		with := *exit
		with.Stderr = printable(lastBytes(c.stderr.String(), stderrInError))
		return &with
	case c.exit != nil:
		// either way nobody knows what became of it
		return lineLost(fmt.Errorf("%s on the host: %w", c.name, c.s.lost(ctx, c.exit)))
	}
	return nil
}

// abandon tells the command to terminate and lets go of it, without waiting
// for the line.
func (c *running) abandon() {
	go func() { // ends with the session at the latest
		if c.kind == "exec" {
			c.ch.SendRequest("signal", false, ssh.Marshal(struct{ Signal string }{string(ssh.SIGTERM)}))
		}
		c.ch.Close()
	}()
}

func (c *running) run(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) error {
	if stdin != nil {
		go func() {
			io.Copy(c.ch, stdin)
			c.ch.CloseWrite()
		}()
	} else {
		go c.ch.CloseWrite()
	}
	if stderr == nil {
		stderr = c.stderr
	}
	if stdout == nil {
		stdout = io.Discard
	}
	out, errs := &gate{w: stdout}, &gate{w: stderr}
	defer out.shut()
	defer errs.shut()
	copied := make(chan error, 2)
	go func() { _, err := io.Copy(out, c.ch); copied <- err }()
	go func() { _, err := io.Copy(errs, c.ch.Stderr()); copied <- err }()
	for range 2 {
		select {
		case err := <-copied:
			if err != nil {
				c.abandon()
				return fmt.Errorf("take the output of %s on the host: %w", c.name, err)
			}
		case <-ctx.Done():
			c.abandon()
			return fmt.Errorf("%s on the host: %w", c.name, context.Cause(ctx))
		}
	}
	err := c.result(ctx)
	if ctx.Err() != nil {
		c.abandon()
	}
	return err
}

// gate is a writer that can be shut, so that nothing is written to the
// caller's once it has its result.
type gate struct {
	mu sync.Mutex // protects w; held while writing
	w  io.Writer
}

func (g *gate) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.w == nil {
		return 0, io.ErrClosedPipe
	}
	return g.w.Write(p)
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.w = nil
}

func lastBytes(text string, n int) string {
	if len(text) > n {
		text = text[len(text)-n:]
	}
	return text
}
