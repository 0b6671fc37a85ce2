package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"
)

// Dial connects to the host, through its hops, proves each of them and is
// let in. Errors are *ErrUnreachable, *ErrUnknownHostKey,
// *ErrHostKeyChanged, *ErrHostKeyRefused, *ErrAuth, or that of ctx; nothing
// has run on the host then, so all of them are ErrNeverRan too. The caller
// closes the session. ctx matters to the dial only.
func Dial(ctx context.Context, h Host, opts Options) (*Session, error) {
	d := &dialer{opts: opts, keys: opts.Keys}
	if d.keys == nil {
		d.keys = new(Keys)
	}
	s, err := d.dial(ctx, h)
	if err == nil {
		return s, nil
	}
	d.close()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return nil, neverRan("connect to "+h.String(), err)
}

// dialer collects what has been opened on the way.
type dialer struct {
	opts    Options
	keys    *Keys
	base    net.Conn   // of the first hop: the one that is no channel within another
	last    *aliveConn // of the hop that was reached last
	clients []*ssh.Client
}

// close begins with the base: with a dead line, saying goodbye within it
// could block.
func (d *dialer) close() {
	if d.base != nil {
		d.base.Close()
	}
	for _, c := range slices.Backward(d.clients) {
		c.Close()
	}
}

func (d *dialer) dial(ctx context.Context, h Host) (*Session, error) {
	path := append(slices.Clone(h.Jumps), h)
	for i, hop := range path {
		conn, err := d.connect(ctx, hop)
		if err != nil {
			return nil, &ErrUnreachable{Host: hop.Addr(), Err: err}
		}
		client, err := d.handshake(ctx, conn, hop, path[:i], i < len(path)-1)
		if err != nil {
			conn.Close()
			return nil, err
		}
		d.clients = append(d.clients, client)
	}
	return newSession(h, d), nil
}

func (d *dialer) timeout(h Host) time.Duration {
	for _, t := range []time.Duration{d.opts.ConnectTimeout, h.ConnectTimeout} {
		if t > 0 {
			return t
		}
	}
	return defaultConnectTimeout
}

// connect opens the stream to a hop: TCP or a ProxyCommand for the first,
// a channel within the one before for the others.
func (d *dialer) connect(ctx context.Context, h Host) (net.Conn, error) {
	timeout := d.timeout(h)
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %v", timeout))
	defer cancel()
	conn, err := d.open(ctx, h)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, err
	}
	if d.base == nil {
		d.base = conn
	}
	d.last = &aliveConn{Conn: conn}
	return d.last, nil
}

func (d *dialer) open(ctx context.Context, h Host) (net.Conn, error) {
	if len(d.clients) > 0 {
		return d.clients[len(d.clients)-1].DialContext(ctx, "tcp", h.Addr())
	}
	if h.ProxyCommand != "" {
		return startProxy(h.ProxyCommand)
	}
	network := h.Family
	if network == "" {
		network = "tcp"
	}
	return new(net.Dialer).DialContext(ctx, network, h.Addr())
}

// handshake owns conn only when it succeeds. It ends with ctx, and when the
// server keeps silent for too long.
func (d *dialer) handshake(ctx context.Context, conn net.Conn, h Host, before []Host, isHop bool) (*ssh.Client, error) {
	var via []Host
	if isHop {
		via = before
	}
	keys, err := openHostKeys(h, via)
	if err != nil {
		return nil, err
	}
	hangUp := func() { d.base.Close(); conn.Close() }
	clock := newPatience(d.timeout(h), hangUp)
	stop := context.AfterFunc(ctx, hangUp)
	defer stop()
	l := &login{ctx: ctx, host: h, asker: &asker{prompt: d.opts.Prompt, keys: d.keys, clock: clock}}
	defer l.close()
	config := &ssh.ClientConfig{
		User: h.User, Auth: l.methods(), AuthCallback: l.note,
		HostKeyCallback: keys.check, HostKeyAlgorithms: keys.algorithms(),
		Config: ssh.Config{Ciphers: h.Ciphers},
	}
	c, channels, requests, err := ssh.NewClientConn(conn, h.Addr(), config)
	if ranOut := clock.stop(); ranOut {
		return nil, &ErrUnreachable{Host: h.Addr(), Err: fmt.Errorf("no answer within %v", d.timeout(h))}
	}
	if err != nil {
		return nil, explainHandshake(h, keys, l, err)
	}
	return ssh.NewClient(c, channels, requests), nil
}

// explainHandshake sorts the errors of x/crypto, which have few types: what
// happens before the host key was found good is about the line or the key,
// what happens after it is about who we are, unless the line breaks.
func explainHandshake(h Host, keys *hostKeys, l *login, err error) error {
	switch {
	case keys.verdict != nil:
		return keys.verdict
	case !keys.sure || isBroken(err):
		return &ErrUnreachable{Host: h.Addr(), Err: err}
	}
	return l.failed(err)
}

// isBroken tells an error of the line from one of the protocol.
func isBroken(err error) bool {
	var netErr *net.OpError
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || errors.As(err, &netErr)
}
