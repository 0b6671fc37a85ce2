package store

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

var ref = release.Ref{Version: "1", Digest: release.Digest([]byte("1"))}

func TestStateIsWhatWasSaved(t *testing.T) {
	s := open(t, t.TempDir())
	if st, err := s.LoadState(); err != nil || st.NextGeneration != 1 || st.Committed != nil {
		t.Fatalf("fresh: %+v, %v", st, err)
	}
	boot, err := BootID()
	if err != nil || len(boot) != 36 {
		t.Fatalf("boot id %q, %v", boot, err)
	}
	other := release.Ref{Version: "0", Digest: release.Digest(nil)}
	want := State{Format: StateFormat, Service: "chat", Committed: &ref, Previous: &other, NextGeneration: 42,
		Stopped: &Stopped{BootID: boot, By: "me"}, Upgrade: &api.Upgrade{ID: "x", Started: time.Unix(1, 2).UTC(), From: &other}}
	must(t, s.SaveState(want))
	got, err := s.LoadState()
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	if fi, err := os.Stat(filepath.Join(s.Dir(), "state/supervisor.json")); err != nil || fi.Mode() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
}

func TestAStateThatCouldNotBeReadAgainIsNotSaved(t *testing.T) {
	s := open(t, t.TempDir())
	good := State{NextGeneration: 7}
	must(t, s.SaveState(good))
	for name, bad := range map[string]State{
		"no generation": {},
		"a bad version": {NextGeneration: 1, Committed: &release.Ref{Version: "../1", Digest: ref.Digest}},
		"a bad digest":  {NextGeneration: 1, Committed: &release.Ref{Version: "1"}},
		"previous only": {NextGeneration: 1, Previous: &ref},
		"too large":     {NextGeneration: 1, Upgrade: &api.Upgrade{By: strings.Repeat("x", maxStateBytes)}},
	} {
		if err := s.SaveState(bad); err == nil {
			t.Errorf("%s was saved", name)
		}
	}
	if st, err := s.LoadState(); err != nil || st.NextGeneration != 7 {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestADamagedStateIsNeverTakenForAnEmptyOne(t *testing.T) {
	for name, content := range map[string]string{
		"empty":           "",
		"zeroes":          "\x00\x00\x00\x00",
		"cut":             `{"format":1,"service":"chat","next_gen`,
		"no format":       `{"service":"chat","next_generation":1}`,
		"null":            `null`,
		"followed":        `{"format":1,"service":"chat","next_generation":1}{}`,
		"another service": `{"format":1,"service":"mail","next_generation":1}`,
		"no generation":   `{"format":1,"service":"chat"}`,
		"a bad reference": `{"format":1,"service":"chat","next_generation":1,"committed":{"version":"1","digest":"x"}}`,
		"a wrong type":    `{"format":1,"service":"chat","next_generation":"1"}`,
		"too large":       `{"format":1,"service":"chat","next_generation":1}` + strings.Repeat(" ", maxStateBytes),
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, t.TempDir())
			r := push(t, s, one)
			must(t, s.SetCurrent("1"))
			must(t, s.AppendHistory(api.Upgrade{ID: "a", Generation: 41}))
			file := filepath.Join(s.Dir(), "state/supervisor.json")
			write(t, file, content)
			_, err := s.LoadState()
			if !errors.Is(err, ErrStateDamaged) || !strings.Contains(err.Error(), file) {
				t.Fatalf("got %v", err)
			}
			if _, err := s.Prune(t.Context(), 0, nil); err == nil {
				t.Error("pruned without knowing what is committed")
			}
			follow(t, err)
			st, err := s.LoadState()
			if err != nil || st.Committed == nil || *st.Committed != r.Ref || st.NextGeneration != 42 {
				t.Errorf("after the remedy: %+v, %v", st, err)
			}
			if !exists(file + ".damaged") {
				t.Error("the damaged file is gone")
			}
		})
	}
}

// follow types what an error says.
func follow(t *testing.T, err error) {
	t.Helper()
	_, remedy, ok := strings.Cut(err.Error(), "type:\n")
	if !ok {
		t.Fatalf("no remedy in %v", err)
	}
	if out, err := exec.Command("sh", "-ec", remedy).CombinedOutput(); err != nil {
		t.Fatalf("the remedy does not work: %v: %s\n%s", err, out, remedy)
	}
}

func TestAMissingStateBesideACommittedReleaseIsNoFreshStart(t *testing.T) {
	s := open(t, t.TempDir())
	r := push(t, s, one)
	if _, err := s.LoadState(); err != nil {
		t.Fatalf("a release that was never committed: %v", err)
	}
	must(t, s.SetCurrent("1"))
	_, err := s.LoadState()
	if !errors.Is(err, ErrStateMissing) {
		t.Fatalf("got %v", err)
	}
	follow(t, err)
	if st, err := s.LoadState(); err != nil || st.Committed == nil || *st.Committed != r.Ref {
		t.Errorf("after the remedy: %+v, %v", st, err)
	}
}

func TestAStateWhoseReleaseIsGoneTooHasARemedyAsWell(t *testing.T) {
	s := open(t, t.TempDir())
	must(t, os.Symlink("releases/gone", filepath.Join(s.Dir(), "current")))
	write(t, filepath.Join(s.Dir(), "state/supervisor.json"), "{")
	_, err := s.LoadState()
	if !errors.Is(err, ErrStateDamaged) {
		t.Fatal(err)
	}
	follow(t, err)
	if _, err := s.LoadState(); err != nil {
		t.Error(err)
	}
}

func TestAStateOfANewerDaemonIsLeftAlone(t *testing.T) {
	s := open(t, t.TempDir())
	write(t, filepath.Join(s.Dir(), "state/supervisor.json"), `{"format":2,"service":{"name":"chat"}}`)
	if _, err := s.LoadState(); !errors.Is(err, ErrStateNewer) || !strings.Contains(err.Error(), "update hotdeployd") {
		t.Errorf("got %v", err)
	}
}

func TestCurrentIsARelease(t *testing.T) {
	s := open(t, t.TempDir())
	link := filepath.Join(s.Dir(), "current")
	if v, err := s.Current(); v != "" || err != nil {
		t.Errorf("at first: %q, %v", v, err)
	}
	for _, v := range []string{"1", "", "..", "../state"} {
		if err := s.SetCurrent(v); err == nil {
			t.Errorf("set to %q", v)
		}
	}
	push(t, s, one)
	push(t, s, app{version: "2"})
	for _, v := range []string{"1", "2", "1"} {
		must(t, s.SetCurrent(v))
		if got, err := s.Current(); got != v || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		if _, err := os.Stat(filepath.Join(link, "files/run")); err != nil {
			t.Error(err)
		}
	}
	for _, to := range []string{"/etc", "state", "releases", "releases/../state", "releases/a/b"} {
		must(t, os.Remove(link))
		must(t, os.Symlink(to, link))
		if v, err := s.Current(); err == nil {
			t.Errorf("a link to %s is %q", to, v)
		}
	}
}
