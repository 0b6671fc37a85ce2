package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

func TestPlanRefusesWhatCannotRunHereBeforeAnythingIsSent(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(m *release.Manifest)
		env  string
		want error
		says []string
	}{
		"another machine": {
			edit: func(m *release.Manifest) { m.OS, m.Arch = "linux", "arm64" },
			want: api.ErrPlatform, says: []string{"built for linux/arm64", "this host is linux/amd64"},
		},
		"another service": {
			edit: func(m *release.Manifest) { m.Service = "mail" },
			want: api.ErrManifest, says: []string{"mail", "chat"},
		},
		"variables": {
			edit: func(m *release.Manifest) { m.Spec.Run.RequireEnv = []string{"TOKEN", "EMPTY", "SET", "PATH"} },
			env:  "SET=tell-nobody\nEMPTY=\n",
			want: api.ErrEnvironment, says: []string{"TOKEN is not set", "EMPTY is not set"},
		},
		"interpreters": {
			edit: func(m *release.Manifest) {
				m.Interpreters = []string{"/bin/sh", "/no/such/python", "cobol-2000", "sh", "/etc/passwd", "/etc"}
			},
			want: api.ErrEnvironment, says: []string{"/no/such/python", "cobol-2000", "/etc/passwd", "/etc is"},
		},
		"a PATH of its own": {
			edit: func(m *release.Manifest) { m.Interpreters = []string{"sh"} },
			env:  "PATH=/nowhere",
			want: api.ErrEnvironment, says: []string{"sh is not there"},
		},
		"an env file that cannot be read": {
			env:  "A=tell-nobody\ntell-nobody\n",
			want: api.ErrEnvironment, says: []string{"/env, line 2"},
		},
		"too large for any disk": {
			edit: func(m *release.Manifest) {
				for i := range 8 {
					m.Files = append(m.Files, release.File{Path: fmt.Sprintf("z%d", i), Mode: 0o644, Size: 8<<30 - 1000, SHA256: release.Digest([]byte{byte(i)})})
				}
			},
			want: api.ErrDiskSpace, says: []string{"needs 9", "GiB"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, t.TempDir())
			if c.env != "" {
				write(t, filepath.Join(s.Dir(), "env"), c.env)
			}
			_, raw, digest := app{version: "1", edit: c.edit}.manifest(t)
			_, err := s.Plan(t.Context(), raw, here)
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			for _, text := range c.says {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%q is not in %q", text, err)
				}
			}
			if e, ok := errors.AsType[*api.Error](err); !ok || e.Hint == "" || strings.Contains(e.Message+e.Hint, "tell-nobody") {
				t.Errorf("hint missing, or it tells a secret: %+v", e)
			}
			if exists(filepath.Join(s.Dir(), "incoming", digest)) {
				t.Error("an upload was begun")
			}
		})
	}
}

func TestPlanAcceptsAMachineThatHasEverything(t *testing.T) {
	s := open(t, t.TempDir())
	write(t, filepath.Join(s.Dir(), "env"), "TOKEN=x\n")
	_, raw, _ := app{version: "1", edit: func(m *release.Manifest) {
		m.OS, m.Arch = "linux", "amd64"
		m.Interpreters = []string{"/bin/sh", "sh"}
		m.Spec.Run.RequireEnv = []string{"TOKEN", "PATH", "OF_THE_RELEASE"}
		m.Spec.Run.Env = map[string]string{"OF_THE_RELEASE": "1"}
	}}.manifest(t)
	p, err := s.Plan(t.Context(), raw, here)
	if err != nil {
		t.Fatal(err)
	}
	if !filepath.IsAbs(p.Dir) {
		t.Errorf("dir %q", p.Dir)
	}
	fi, err := os.Stat(p.Dir)
	if err != nil || fi.Mode() != os.ModeDir|os.ModeSetgid|0o770 {
		t.Errorf("parts: %v, %v", fi.Mode(), err)
	}
}

func TestPlanRefusesManifestsThatClimbOut(t *testing.T) {
	s := open(t, t.TempDir())
	_, raw, _ := app{version: "1", files: map[string]string{"sub/file": "x", "sub/link": "->../run"}}.manifest(t)
	for name, change := range map[string][2]string{
		"dots":             {`"sub/file"`, `"../file"`},
		"absolute":         {`"sub/file"`, `"/etc/passwd"`},
		"a link out":       {`"../run"`, `"../../../state"`},
		"through a link":   {`"sub/file"`, `"sub/link/x"`},
		"version as path":  {`"version":"1"`, `"version":"../1"`},
		"version as temp":  {`"version":"1"`, `"version":".hotdeploy-1"`},
		"digest as path":   {release.Digest([]byte("x")), "../../../../etc/passwd"},
		"setuid":           {`"mode":420`, `"mode":2541`},
		"newer":            {`"format":1`, `"format":2`},
		"unknown":          {`"format":1`, `"format":1,"more":1`},
		"cut":              {`"version":"1"}`, `"version":"1"`},
		"no manifest":      {string(raw), `[]`},
		"nothing at all":   {string(raw), ``},
		"with a different": {`"size":1`, `"size":-1`},
	} {
		bad := strings.Replace(string(raw), change[0], change[1], 1)
		if bad == string(raw) {
			t.Errorf("%s: the test changes nothing", name)
		}
		if _, err := s.Plan(t.Context(), []byte(bad), here); !errors.Is(err, api.ErrManifest) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestAVersionHasOneContentForEver(t *testing.T) {
	s := open(t, t.TempDir())
	push(t, s, one)
	other := app{version: "1", files: map[string]string{"bin/tool*": "tool two"}}
	_, raw, digest := other.manifest(t)
	_, err := s.Plan(t.Context(), raw, here)
	if e, ok := errors.AsType[*api.Error](err); !ok || !errors.Is(err, api.ErrConflict) || !strings.Contains(e.Hint, "--version") {
		t.Fatalf("got %v", err)
	}
	if _, err := s.Complete(t.Context(), digest); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("complete: %v", err)
	}
	whole(t, s, "1")
}

func TestTwoUploadsOfOneVersion_TheSecondToCompleteIsRefused(t *testing.T) {
	s := open(t, t.TempDir())
	late := send(t, s, app{version: "1", files: map[string]string{"a": "late"}})
	push(t, s, app{version: "1", files: map[string]string{"a": "early"}})
	if _, err := s.Complete(t.Context(), late); !errors.Is(err, api.ErrConflict) {
		t.Errorf("got %v", err)
	}
	whole(t, s, "1")
}

func TestAtMostEightUploadsWait_TheOneThatMovedLeastRecentlyGoes(t *testing.T) {
	s := open(t, t.TempDir())
	start := time.Now()
	var digests []string
	for i := range 9 {
		d := send(t, s, app{version: fmt.Sprint(i), files: map[string]string{"a": fmt.Sprint("content", i)}})
		age(t, s, d, start.Add(time.Duration(i-100)*time.Minute))
		digests = append(digests, d)
		if i == 1 { // the first one moves again
			age(t, s, digests[0], start)
		}
	}
	for i, d := range digests {
		if got, want := exists(filepath.Join(s.Dir(), "incoming", d)), i != 1; got != want {
			t.Errorf("upload %d is there: %v", i, got)
		}
	}
}

func TestAnUploadThatIsBeingCompletedStays(t *testing.T) {
	s := open(t, t.TempDir())
	digest := send(t, s, one)
	age(t, s, digest, time.Now().Add(-2*uploadLife))
	s.setCompleting(digest)
	send(t, s, app{version: "2"})
	s.setCompleting("")
	push(t, s, one)
}

func TestUploadsThatLayStillForAWeekGo(t *testing.T) {
	s := open(t, t.TempDir())
	old := send(t, s, app{version: "1", files: map[string]string{"a": "a"}})
	age(t, s, old, time.Now().Add(-uploadLife-time.Minute))
	moved := send(t, s, app{version: "2", files: map[string]string{"a": "b"}})
	age(t, s, moved, time.Now().Add(-uploadLife-time.Minute))
	must(t, os.Chtimes(part(s, moved, "b"), time.Time{}, time.Now().Add(-time.Hour)))
	send(t, s, app{version: "3", files: map[string]string{"a": "c"}})
	if exists(filepath.Join(s.Dir(), "incoming", old)) || !exists(filepath.Join(s.Dir(), "incoming", moved)) {
		t.Error("the wrong one went")
	}
}

// age makes an upload look as if nothing had happened to it since.
func age(t *testing.T, s *Store, digest string, when time.Time) {
	t.Helper()
	dir := filepath.Join(s.Dir(), "incoming", digest)
	must(t, filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chtimes(p, when, when)
	}))
}

func TestAWholePartWithAHoleIsNotTakenForWhole(t *testing.T) {
	s := open(t, t.TempDir())
	big := strings.Repeat("big", 2<<20)
	a := app{version: "1", files: map[string]string{"small": "small", "big": big}}
	_, digest := plan(t, s, a)
	write(t, part(s, digest, "small"), "sm\x00ll")
	write(t, part(s, digest, big), big[:5<<20]+strings.Repeat("\x00", len(big)-5<<20))
	missing, _ := plan(t, s, a)
	if at, ok := missing[release.Digest([]byte("small"))]; !ok || at != 0 {
		t.Errorf("small: %v at %d", ok, at)
	}
	if at, ok := missing[release.Digest([]byte(big))]; !ok || at != int64(len(big)) {
		t.Errorf("big: %v at %d", ok, at)
	}
	must(t, os.Truncate(part(s, digest, big), int64(len(big))+1))
	if missing, _ := plan(t, s, a); missing[release.Digest([]byte(big))] != 0 {
		t.Errorf("too much: missing %v", missing)
	}
	write(t, part(s, digest, big), strings.Repeat("\x00", len(big)))
	if _, err := s.Complete(t.Context(), send(t, s, a)); !errors.Is(err, api.ErrDigest) { // nobody filled the hole
		t.Errorf("complete: %v", err)
	}
	push(t, s, a)
	whole(t, s, "1")
}

func TestWaitingForTheTurnEndsWithItsContext(t *testing.T) {
	s := open(t, t.TempDir())
	_, raw, digest := one.manifest(t)
	must(t, s.building.take(t.Context()))
	must(t, s.planning.take(t.Context()))
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("the caller left"))
	if _, err := s.Plan(ctx, raw, here); err == nil || !strings.Contains(err.Error(), "the caller left") {
		t.Errorf("plan: %v", err)
	}
	if _, err := s.Complete(ctx, digest); err == nil || !strings.Contains(err.Error(), "the caller left") {
		t.Errorf("complete: %v", err)
	}
	s.building.give()
	s.planning.give()
	push(t, s, one)
}

func TestACompleteThatIsCancelledLeavesTheUpload(t *testing.T) {
	s := open(t, t.TempDir())
	digest := send(t, s, one)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 { // now and then the turn is there before the end of the context is seen
		if _, err := s.Complete(ctx, digest); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
	}
	if missing, _ := plan(t, s, one); len(missing) != 0 {
		t.Errorf("missing %v", missing)
	}
	push(t, s, one)
	whole(t, s, "1")
}
