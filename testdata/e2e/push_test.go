package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/testdata/apps"
	"github.com/hotdeploy/hotdeploy/testdata/load"
)

const pushes = 20

// The promise itself: clients that came before the first push are still there, in the process that took them, after the
// last one, and nobody who came meanwhile was refused, reset or left waiting.
func TestPush_TwentyTimesUnderLoad(t *testing.T) {
	s := newService(t, common())
	s.base.Env = ""
	// All of them at once: it is about the load here, not about the policy.
	s.base.More = "[drain]\nmax_generations = 0\n"
	s.push("0").want(0)
	builds := buildMany(t, pushes)
	l := s.load(load.Options{WebSockets: 1000, NewConnsPerSecond: 200, OpenTimeout: 30 * time.Second})

	began := time.Now()
	for i, build := range builds {
		version := fmt.Sprint(i + 1)
		s.place(build, "bin/wsecho")
		c := s.push(version).want(0)
		if body, mark, err := s.get("/version"); err != nil || body != version || mark != markOf(i) {
			t.Errorf("after the push of %s: %s of build %s answers (%v)", version, body, mark, err)
		}
		beat(t, l)
		st := s.status()
		t.Logf("push took %s: %s; %s", c.took.Round(time.Millisecond), phases(st.Last), st.Text)
		if first := st.Generations[len(st.Generations)-1]; first.Number != 1 || first.Connections != 1000 {
			t.Errorf("generation %d is the oldest, with %d connections; want 1 with 1000", first.Number, first.Connections)
		}
	}
	ended := time.Now()
	beat(t, l)
	s.quietLoad(l)
	during, after := l.Latency(began, ended), l.Latency(ended, time.Now())

	r := unnoticed(t, l)
	if r.Versions["0"] != 1000 {
		t.Errorf("WebSockets are served by %v, want all 1000 by release 0", r.Versions)
	}
	t.Logf("%s", r)
	t.Logf("%d pushes in %s · %d requests · slowest %s (p99 %s) during, %s (p99 %s) afterwards · slowest echo %s · driver late %s",
		pushes, ended.Sub(began).Round(time.Millisecond), r.RequestsOK, during.Slowest.Round(time.Millisecond/10), during.P99.Round(time.Millisecond/10),
		after.Slowest.Round(time.Millisecond/10), after.P99.Round(time.Millisecond/10), r.SlowestEcho.Round(time.Millisecond/10), r.DriverLate.Round(time.Millisecond/10))
	until(t, "the first release has ended with its connections", func() bool { return len(s.status().Generations) == 1 })
	if got := s.consistent(); got != fmt.Sprint(pushes) {
		t.Errorf("release %s is committed", got)
	}
}

// quietLoad lets a few hundred requests pass without a push, to compare with.
func (s *service) quietLoad(l *load.Load) {
	s.t.Helper()
	before := l.Snapshot().RequestsOK
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for l.Snapshot().RequestsOK < before+400 {
		if err := l.Beat(ctx); err != nil {
			s.t.Error(err)
			return
		}
	}
}

func markOf(i int) string { return fmt.Sprintf("mark-%d", i) }

// buildMany builds n releases that differ in content, before the clock runs.
func buildMany(t *testing.T, n int) []string {
	t.Helper()
	began := time.Now()
	paths := make([]string, n)
	for i := range paths {
		paths[i] = apps.BuildMarked(t, "wsecho", "", "", markOf(i))
	}
	t.Logf("%d builds in %s", n, time.Since(began).Round(time.Millisecond))
	return paths
}

// Whatever is the same as in an earlier release is not sent again.
func TestPush_SendsOnlyWhatTheHostLacks(t *testing.T) {
	s := newService(t, common())
	l, config := newLine(t, s.vm)
	s.sshConfig = config
	s.base.Files = `["bin/**", "data/**"]`
	big := make([]byte, 8<<20)
	_, err := randomBytes(big)
	must(t, err)
	s.file("data/big", big)
	size := func() int64 {
		is, err := os.Stat(s.dir + "/bin/wsecho")
		must(t, err)
		return is.Size() + int64(len(big))
	}
	before := l.total()
	s.push("1").want(0)
	first := l.total() - before
	s.file("data/small", []byte("one small file more"))
	before = l.total()
	s.push("2").want(0)
	second := l.total() - before
	t.Logf("a release of %d bytes: %d bytes to the host at first, %d for the next with a small change", size(), first, second)
	if first < int64(len(big)) || first > size() || second > 16<<10 { // what is random does not compress
		t.Errorf("sent %d bytes, then %d", first, second)
	}
	if releases := s.look().releases; !slices.Equal(releases, []string{"1", "2"}) {
		t.Errorf("releases %q", releases)
	}
}
