package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/procs"
)

const (
	maxOutput = 4 << 10 // bytes of a command's output that are kept: its end
	maxLines  = 5       // of them in an error

	// How long a killed command may take to end, and its output to close: one that left the tree may hold it open.
	killTimeout, outputTimeout = 10 * time.Second, time.Second
)

// runCommand runs a check of the release's own. It passes with status 0. Whatever it started is ended with it.
func runCommand(ctx context.Context, command []string, t Target) error {
	if len(command) == 0 {
		return errors.New("the check has no command")
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	env := append(slices.Clone(t.Env), fmt.Sprintf("HOTDEPLOY_PID=%d", t.main()))
	g, err := procs.Launch(procs.Spec{Name: "check", Path: procs.Find(command[0], t.Dir, env), Args: command, Env: env, Dir: t.Dir, Stdout: w, Stderr: w})
	w.Close()
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	said := make(chan string, 1)
	go func() { said <- lastOf(r) }() // ends when nobody has the other end, or r is closed
	err = finish(ctx, g)
	if err == nil {
		return nil
	}
	select {
	case text := <-said:
		if text != "" {
			return fmt.Errorf("check %s: %w: %s", command[0], err, text)
		}
	case <-time.After(outputTimeout):
	}
	return fmt.Errorf("check %s: %w", command[0], err)
}

func (t Target) main() int {
	if t.Pid != 0 {
		return t.Pid
	}
	pids := t.Pids()
	if len(pids) == 0 {
		return 0
	}
	return slices.Min(pids)
}

// finish waits for the command and ends what is left of it.
func finish(ctx context.Context, g *procs.Group) error {
	var err error
	select {
	case <-g.Done():
		if e := g.Exit(); e.Signal != 0 {
			err = errors.New(e.String())
		} else if e.Code != 0 {
			err = fmt.Errorf("exit status %d", e.Code)
		}
	case <-ctx.Done():
		err = errors.New("killed, since it did not end in time")
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	if killErr := g.Kill(end); killErr != nil {
		return errors.Join(err, killErr)
	}
	return errors.Join(err, g.Remove())
}

// lastOf reads to the end and keeps the last lines.
func lastOf(r *os.File) string {
	var kept []byte
	buf := make([]byte, maxOutput)
	for {
		n, err := r.Read(buf)
		kept = append(kept, buf[:n]...)
		kept = kept[max(0, len(kept)-maxOutput):]
		if err != nil {
			break
		}
	}
	lines := bytes.Split(bytes.TrimSpace(kept), []byte("\n"))
	var text []string
	for _, l := range lines[max(0, len(lines)-maxLines):] {
		if s := shown(string(l)); s != "" {
			text = append(text, s)
		}
	}
	return strings.Join(text, " | ")
}
