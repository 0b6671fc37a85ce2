package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// commandLimit is how long any hotdeploy command may take in here. What tests promise about its time they check themselves.
const commandLimit = 3 * time.Minute

// command is a hotdeploy that runs in the lab's network.
type command struct {
	t       *testing.T
	args    []string
	cmd     *exec.Cmd
	began   time.Time
	stdout  transcript
	all     transcript // of both streams
	ended   chan struct{}
	took    time.Duration
	timeout bool
}

// start runs hotdeploy in dir, without waiting for it. What it said is logged if the test fails.
func start(t *testing.T, dir string, program string, args ...string) *command {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	c := &command{t: t, args: args, began: time.Now(), ended: make(chan struct{})}
	c.cmd = world.Command(ctx, program, args...)
	c.cmd.Dir = dir
	c.cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + private, "LANG=C.UTF-8"}
	c.cmd.Stdout, c.cmd.Stderr = io.MultiWriter(&c.stdout, &c.all), &c.all
	record(c)
	if err := c.cmd.Start(); err != nil {
		cancel()
		t.Fatalf("start hotdeploy: %v", err)
	}
	go func() {
		_ = c.cmd.Wait() // the status says it
		c.took, c.timeout = time.Since(c.began), ctx.Err() != nil
		cancel()
		close(c.ended)
	}()
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		<-c.ended
	})
	return c
}

// records are the commands of each test that runs, in their order, by *testing.T.
var records struct {
	sync.Mutex // protects of
	of         map[*testing.T][]*command
}

// record sees to it that the command is logged if its test fails.
func record(c *command) {
	records.Lock()
	defer records.Unlock()
	if records.of == nil {
		records.of = map[*testing.T][]*command{}
	}
	if records.of[c.t] == nil {
		c.t.Cleanup(func() {
			if text := recorded(c.t); c.t.Failed() {
				c.t.Log(text)
			}
		})
	}
	records.of[c.t] = append(records.of[c.t], c)
}

func recorded(t *testing.T) string {
	records.Lock()
	defer records.Unlock()
	text := "all commands:\n"
	for _, c := range records.of[t] {
		text += c.String()
	}
	delete(records.of, t)
	return text
}

// program is the command under test, or a variant of it that a test has built.
func program() string { return filepath.Join(bin, "hotdeploy") }

// wait returns when the command has ended.
func (c *command) wait() *command {
	<-c.ended
	return c
}

// within fails the test if the command is not over that soon after now, and waits for it.
func (c *command) within(limit time.Duration) *command {
	c.t.Helper()
	select {
	case <-c.ended:
	case <-time.After(limit):
		c.t.Errorf("hotdeploy %s has not ended %s after it should have:\n%s", strings.Join(c.args, " "), limit, c.text())
		_ = c.cmd.Process.Signal(syscall.SIGQUIT) // where does it hang?
		<-c.ended
	}
	return c
}

func (c *command) status() int { return c.cmd.ProcessState.ExitCode() }

// text is all that it said.
func (c *command) text() string { return c.all.String() }

// says waits until it has said text.
func (c *command) says(text string) {
	c.t.Helper()
	for {
		more := c.all.more()
		if strings.Contains(c.text(), text) {
			return
		}
		select {
		case <-more:
		case <-c.ended:
			if !strings.Contains(c.text(), text) {
				c.t.Fatalf("hotdeploy %s ended without saying %q:\n%s", strings.Join(c.args, " "), text, c.text())
			}
		}
	}
}

// interrupt is a ^C.
func (c *command) interrupt() {
	c.t.Helper()
	if err := c.cmd.Process.Signal(syscall.SIGINT); err != nil {
		c.t.Errorf("interrupt hotdeploy: %v", err)
	}
}

// want fails the test unless the command ended with that exit status.
func (c *command) want(status int) *command {
	c.t.Helper()
	if got := c.wait().status(); got != status || c.timeout {
		c.t.Fatalf("hotdeploy %s: exit status %d, want %d", strings.Join(c.args, " "), got, status)
	}
	return c
}

// wantText fails the test unless each of the words was said, in whatever case.
func (c *command) wantText(words ...string) *command {
	c.t.Helper()
	text := strings.ToLower(c.text())
	for _, w := range words {
		if !strings.Contains(text, strings.ToLower(w)) {
			c.t.Errorf("hotdeploy %s does not say %q:\n%s", strings.Join(c.args, " "), w, c.text())
		}
	}
	return c
}

// oneScreen fails the test if it said more than fits on a terminal.
func (c *command) oneScreen() {
	c.t.Helper()
	if n := strings.Count(c.text(), "\n"); n > 24 {
		c.t.Errorf("hotdeploy %s said %d lines, more than one screen:\n%s", strings.Join(c.args, " "), n, c.text())
	}
}

func (c *command) String() string {
	how := "runs"
	select {
	case <-c.ended:
		how = fmt.Sprintf("%s after %s", c.cmd.ProcessState, c.took.Round(time.Millisecond))
	default:
	}
	return fmt.Sprintf("$ hotdeploy %s   [%s]\n%s", strings.Join(c.args, " "), how, c.text())
}

// transcript is what was written, and a way to wait for more.
type transcript struct {
	mu      sync.Mutex // protects what follows
	buf     bytes.Buffer
	changed chan struct{}
}

func (w *transcript) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.changed != nil {
		close(w.changed)
		w.changed = nil
	}
	return w.buf.Write(p)
}

// more is closed when something is written from now on; after the end it never is.
func (w *transcript) more() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.changed == nil {
		w.changed = make(chan struct{})
	}
	return w.changed
}

func (w *transcript) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}
