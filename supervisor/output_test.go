package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

func init() {
	selves["talks"] = func() {
		version := os.Getenv("HOTDEPLOY_VERSION")
		fmt.Printf("%s: line 1\n%s: line 2\n", version, version)
		notify("READY=1")
		untilSIGTERM()
		fmt.Printf("%s: last words, without an end", version)
	}
	selves["leaves one behind"] = func() { // a daemon that took the output along
		notify("READY=1")
		untilSIGTERM()
		cmd := exec.Command("setsid", "--fork", "sh", "-c", `echo $$ >"$0.new"; mv "$0.new" "$0"; exec sleep 100`, os.Getenv("PIDFILE"))
		cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			panic(err)
		}
		for {
			if _, err := os.Stat(os.Getenv("PIDFILE")); err == nil {
				return
			}
		}
	}
}

// follower collects what logs -f prints.
type follower struct {
	mu   sync.Mutex // protects b and more
	b    bytes.Buffer
	more chan struct{} // closed and replaced when there is more
}

func (f *follower) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.more)
	f.more = make(chan struct{})
	return f.b.Write(p)
}

func (f *follower) await(t *testing.T, text string) {
	t.Helper()
	late := time.After(20 * time.Second)
	for {
		f.mu.Lock()
		have, more := f.b.String(), f.more
		f.mu.Unlock()
		if strings.Contains(have, text) {
			return
		}
		select {
		case <-more:
		case <-late:
			t.Fatalf("%q is not in %q", text, have)
		}
	}
}

func (r *rig) logs(q api.LogQuery) string {
	r.t.Helper()
	var b bytes.Buffer
	if err := r.client.Logs(r.ctx(), q, &b); err != nil {
		r.t.Fatalf("logs %+v: %v", q, err)
	}
	return b.String()
}

func TestLogs_FollowEveryGeneration_ToItsLastWord(t *testing.T) {
	r := newRig(t)
	all, second := &follower{more: make(chan struct{})}, &follower{more: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	var following sync.WaitGroup
	following.Go(func() { r.client.Logs(ctx, api.LogQuery{Follow: true}, all) })
	following.Go(func() { r.client.Logs(ctx, api.LogQuery{Follow: true, Release: "2"}, second) })
	r.push("1", self("talks"))
	all.await(t, "1: line 2\n")
	r.push("2", self("talks"))
	all.await(t, "1: last words, without an end")
	second.await(t, "2: line 1\n2: line 2\n")
	if got := r.logs(api.LogQuery{}); !strings.HasPrefix(got, "1: line 1\n1: line 2\n") || !strings.Contains(got, "2: line 1\n") || !strings.Contains(got, "1: last words") {
		t.Errorf("%q", got)
	}
	if got := r.logs(api.LogQuery{Release: "2", Lines: 1}); got != "2: line 2\n" {
		t.Errorf("the last line of 2: %q", got)
	}
	if _, err := r.client.Stop(r.ctx(), api.StopRequest{By: "tester"}); err != nil {
		t.Fatal(err)
	}
	second.await(t, "2: last words, without an end")
	if strings.Contains(second.b.String(), "1: ") {
		t.Errorf("of 2 alone: %q", second.b.String())
	}
	cancel()
	following.Wait()
}

func TestOutput_OneThatEscapedHoldsIt_NobodyWaits(t *testing.T) {
	r := newRig(t)
	pidFile := filepath.Join(r.dir, "pid")
	r.push("1", self("leaves one behind"), env("PIDFILE", pidFile))
	if _, err := r.client.Stop(r.ctx(), api.StopRequest{By: "tester"}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if st := r.status(); len(st.Generations) != 0 {
		t.Errorf("%+v", st.Generations)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Error(err)
	}
}

// Whoever reads the daemon's output may stop to do so: a terminal after ^S, a container's log driver. The app waits then, as
// it would without us; nobody else does.
func TestOutput_NobodyReadsIt_UpgradesGoOn(t *testing.T) {
	r := emptyRig(t)
	stuck, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stuck.Close()
	defer out.Close()
	r.prepare = func(o *Options) { o.Output = out }
	r.start()
	soon := stopsWithin(2 * time.Second)
	r.push("1", env("WSECHO_FLOOD_STDERR_MIB", "1"), soon)
	r.push("2", env("WSECHO_FLOOD_STDERR_MIB", "1"), soon)
	r.push("3", soon)
	r.await(func(e api.Event) bool {
		return e.Generation == 1 && (strings.Contains(e.Text, "exited") || strings.Contains(e.Text, "was killed"))
	})
	r.stop()
	stuck.Close() // lets the relays go
}

// Bursts of long lines must cost neither memory nor the newest words.
func TestPrinted_KeepsTheNewest(t *testing.T) {
	p := newPrinted()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	o := &output{version: "1", read: r, done: make(chan struct{}), kept: p}
	go o.relay(io.Discard)
	line := strings.Repeat("x", 3*maxLine) + "\n"
	for range 200 {
		io.WriteString(w, line)
	}
	io.WriteString(w, "the last words")
	w.Close()
	<-o.done
	o.close()
	b, _, _ := p.after(0, "1")
	if len(b) > 2*keptPrinted || !strings.HasSuffix(string(b), "x\nthe last words") {
		t.Errorf("%d bytes are kept, ending with %q", len(b), b[max(0, len(b)-30):])
	}
	if got := o.lastLines(2); len(got) != 2 || got[1] != "the last words" || len(got[0]) > 500 {
		t.Errorf("last lines: %d", len(got))
	}
	if seq, found := p.beforeLast(1, "2"); found || seq != p.seq {
		t.Errorf("of another release: %d, %v", seq, found)
	}
}
