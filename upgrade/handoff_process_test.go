package upgrade

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Stories of two processes that differ, or of which one breaks.

// survivors counts the clients that get an answer, with the right number; the others have been cut off, and none is left hanging.
func (c *crowd) survivors(t *testing.T) (n int) {
	t.Helper()
	for i, x := range c.list {
		x.SetDeadline(time.Now().Add(patience))
		err := c.ask(x)
		if err == nil {
			err = c.answered(x)
		}
		switch {
		case err == nil:
			n++
		case strings.Contains(err.Error(), "timeout"), !strings.Contains(err.Error(), "EOF") && !strings.Contains(err.Error(), "reset") && !strings.Contains(err.Error(), "broken pipe"):
			t.Errorf("client %d: %v", i, err)
		}
	}
	return n
}

// documented are the steps in PROTOCOL.md.
func documented(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile("PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	_, part, _ := strings.Cut(string(b), "## 4.")
	return unique(regexp.MustCompile("`((give|take)\\.[a-z]+)`").FindAllStringSubmatch(part, -1))
}

func unique(matches [][]string) (list []string) {
	for _, m := range matches {
		list = append(list, m[1])
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func TestFailpoints_AreThoseOfTheProtocol(t *testing.T) {
	var matches [][]string
	for _, file := range []string{"give.go", "give_offer.go", "give_verdict.go", "take.go", "barrier.go"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		matches = append(matches, regexp.MustCompile(`failpoint\("((give|take)\.[a-z]+)"\)`).FindAllStringSubmatch(string(b), -1)...)
	}
	if in, on := unique(matches), documented(t); !slices.Equal(in, on) {
		t.Errorf("in the source: %v\nin PROTOCOL.md: %v", in, on)
	}
}

// TestHandoff_EitherSideBreaksAtEachStep: wherever one of the two ends or hangs, each connection lives on in the other if that may be, or ends; none has two owners
// (its numbers would go wrong) and none is left hanging.
func TestHandoff_EitherSideBreaksAtEachStep(t *testing.T) {
	const n = 20
	// Where the giver breaks before a connection is offered whole nobody else knows it; and one that it has withdrawn is its own.
	mayEnd := []string{"give.greet", "give.begin", "give.frozen", "give.thawed", "give.sealed", "give.offered", "give.receipt", "give.withdrawn", "take.receipt"}
	for _, step := range documented(t) {
		for _, action := range []string{"kill", "stop"} {
			t.Run(step+" "+action, func(t *testing.T) {
				t.Parallel()
				s := newService(t)
				mode, slow, read, within := "UPGRADE_TEST_MODE=barrier", "UPGRADE_TEST_SLOW=0", func() {}, 15*time.Second
				if strings.Contains(step, "withdr") { // what nobody reads is withdrawn
					mode = "UPGRADE_TEST_MODE=rolling"
					slow, read = heldBack(t)
				}
				switch step {
				case "take.refused":
					slow = "UPGRADE_TEST_SLOW=1h"
				case "take.greet": // only the end of the time ends this
					within = 2 * time.Second
				}
				break_ := "UPGRADE_FAILPOINT=" + step + "=" + action
				giverBreaks := strings.HasPrefix(step, "give.")
				envs := map[bool][]string{giverBreaks: {mode, break_}, !giverBreaks: {mode}}
				old := s.start("lines", envs[true]...)
				c := dialCrowd(t, s.ln.Addr().String(), "lines", n, 0)
				next := s.start("lines", append(envs[false], slow)...)
				broken := next
				if giverBreaks {
					broken = old
				}
				s.order(old, next, within)
				if step == "give.end" {
					s.given(old)
					s.proceed(old)
				}
				broken.await(t, "failpoint "+step)
				if action == "stop" && !giverBreaks {
					s.given(old) // and then the supervisor ends who hangs
				}
				broken.cmd.Process.Signal(unix.SIGKILL)
				<-broken.done
				read()
				if got := c.survivors(t); got != n && !slices.Contains(mayEnd, step) {
					t.Errorf("%d of %d connections live", got, n)
				}
			})
		}
	}
}

// heldBack makes a process that does not read what it is offered before open is called.
func heldBack(t *testing.T) (env string, open func()) {
	t.Helper()
	fifo := filepath.Join(t.TempDir(), "gate")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	return "UPGRADE_TEST_GATE=" + fifo, func() {
		t.Helper()
		f, err := os.OpenFile(fifo, os.O_RDWR, 0) // which does not wait for a reader
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
	}
}

func TestHandoff_SDKsOfOtherVersions(t *testing.T) {
	const n = 50
	for name, tc := range map[string]struct {
		old, next string
		moved     int
	}{
		"the older one gives":             {"UPGRADE_TEST_PROTOCOLS=1", "UPGRADE_TEST_PROTOCOLS=1,2", n},
		"the older one takes":             {"UPGRADE_TEST_PROTOCOLS=1,2", "UPGRADE_TEST_PROTOCOLS=1", n},
		"the newer one speaks much more":  {"UPGRADE_TEST_PROTOCOLS=1,2", "UPGRADE_TEST_PROTOCOLS=2,3,4", n},
		"they have nothing in common":     {"UPGRADE_TEST_PROTOCOLS=1,2", "UPGRADE_TEST_PROTOCOLS=3", 0},
		"the records cannot be read":      {"UPGRADE_TEST_RECORDS=1", "UPGRADE_TEST_RECORDS=2,3", 0},
		"more records than ours are read": {"UPGRADE_TEST_RECORDS=1", "UPGRADE_TEST_RECORDS=1,2,3", n},
	} {
		for _, mode := range []string{"rolling", "barrier"} {
			t.Run(name+", "+mode, func(t *testing.T) {
				s := newService(t)
				old := s.start("lines", tc.old, "UPGRADE_TEST_MODE="+mode)
				c := dialCrowd(t, s.ln.Addr().String(), "lines", n, 0)
				next := s.start("lines", tc.next, "UPGRADE_TEST_MODE="+mode)
				m := s.move(old, next)
				if m.Moved != tc.moved || m.Error == "" != (tc.moved == n) {
					t.Errorf("%+v", m)
				}
				c.talk(t)
				if tc.moved == n {
					old.term(t)
					c.talk(t)
				}
			})
		}
	}
}

// TestHandoff_TakerHasFewDescriptors: it takes what it can hold, or nothing; the rest goes on where it was, and says why.
func TestHandoff_TakerHasFewDescriptors(t *testing.T) {
	const n = 400
	for _, mode := range []string{"rolling", "barrier"} {
		t.Run(mode, func(t *testing.T) {
			s := newService(t)
			old := s.start("lines", "UPGRADE_TEST_MODE="+mode)
			c := dialCrowd(t, s.ln.Addr().String(), "lines", n, 0)
			next := s.start("lines", "UPGRADE_TEST_MODE="+mode, "UPGRADE_TEST_NOFILE=200")
			m := s.move(old, next)
			if m.Moved >= 200 || m.Moved+m.Kept[string(ReasonFiles)] != n || m.PeerHangs {
				t.Errorf("%+v", m)
			}
			t.Logf("moved %d, kept %v", m.Moved, m.Kept)
			c.talk(t)
		})
	}
}
