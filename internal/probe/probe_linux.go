package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/internal/sockets"
)

// Target is the generation that is asked.
type Target struct {
	Sockets map[string]*sockets.Socket // by the listener's name
	First   *sockets.Socket            // for a probe that names none; nil if there is none
	Pids    func() []int
	Dir     string   // of commands
	Env     []string // of commands
}

// maxAnswer is how much of an HTTP answer is read.
const maxAnswer = 16 << 10

// Check asks once. It ends when ctx does.
func Check(ctx context.Context, p release.Probe, t Target) error {
	if p.Check == release.CheckCommand {
		return runCommand(ctx, p.Command, t)
	}
	s := t.First
	if p.Listener != "" {
		s = t.Sockets[p.Listener]
	}
	if s == nil {
		return fmt.Errorf("there is no listener %q to probe", p.Listener)
	}
	c, err := reach(ctx, s, t.Pids)
	if err != nil {
		return err
	}
	defer c.Close()
	if p.Check == release.CheckTCP {
		return nil
	}
	return get(ctx, c, p)
}

// WaitReady repeats Check until it passes or ctx ends; the error then carries the last failure. Nothing tells when an app without
// sd_notify is ready, so it asks again and again, less and less often.
func WaitReady(ctx context.Context, r release.Ready, t Target) error {
	pause := 20 * time.Millisecond
	var last error
	for {
		err := Check(ctx, r.Probe, t)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return last
		case <-timer.C:
		}
		pause = min(2*pause, 500*time.Millisecond)
	}
}

// reach returns a connection that the generation accepted, and that nobody has sent a byte on. While another generation gets
// them, it opens more at once: two processes that wait for the same socket take turns only under load.
func reach(ctx context.Context, s *sockets.Socket, pids func() []int) (net.Conn, error) {
	network, addr := reachable(s)
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	const most = 16
	pause := time.Millisecond
	for {
		others := 0
		for i, c := range open {
			theirs, accepted, err := sockets.AcceptedBy(c, pids())
			switch {
			case err != nil:
				return nil, fmt.Errorf("ask the kernel who accepted: %w", err)
			case theirs:
				open = append(open[:i:i], open[i+1:]...)
				return c, nil
			case accepted:
				others++
			}
		}
		if others == len(open) { // each one went to somebody else, or none is open yet: open some more
			for _, c := range open {
				c.Close()
			}
			n := min(max(2*len(open), 1), most)
			open = open[:0]
			for range n {
				c, err := new(net.Dialer).DialContext(ctx, network, addr)
				if err != nil {
					return nil, err
				}
				open = append(open, c)
			}
		}
		timer := time.NewTimer(pause) // the kernel tells nobody when somebody accepts
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("it accepted no connection on %s", addr)
		case <-timer.C:
		}
		pause = min(2*pause, 50*time.Millisecond)
	}
}

// reachable is how to dial s from this host.
func reachable(s *sockets.Socket) (network, addr string) {
	if s.Listener.Network == "unix" {
		return "unix", s.Addr
	}
	host, port, err := net.SplitHostPort(s.Addr)
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if s.Listener.Network == "tcp6" {
			host = "::1"
		}
		return "tcp", net.JoinHostPort(host, port)
	}
	return "tcp", s.Addr
}

// get asks for p.Path on c.
func get(ctx context.Context, c net.Conn, p release.Probe) error {
	if d, ok := ctx.Deadline(); ok {
		c.SetDeadline(d)
	}
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	path, host := p.Path, p.Host
	if path == "" {
		path = "/"
	}
	if host == "" {
		host = "localhost"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+path, nil)
	if err != nil {
		return err
	}
	req.Close = true
	req.Header.Set("User-Agent", "hotdeploy")
	if err := req.Write(c); err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
	}
	res, err := http.ReadResponse(bufio.NewReader(io.LimitReader(c, maxAnswer)), req)
	if err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = errors.New("no answer in time")
		}
		return fmt.Errorf("GET %s: %w", path, err)
	}
	defer res.Body.Close()
	if res.StatusCode >= 200 && res.StatusCode < 400 {
		return nil
	}
	body, _ := io.ReadAll(io.LimitReader(res.Body, 200))
	return fmt.Errorf("GET %s: %s: %s", path, res.Status, strings.TrimSpace(string(body)))
}
