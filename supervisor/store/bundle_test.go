package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/bundle"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// content is a file in memory.
type content struct{ *bytes.Reader }

func (content) Close() error { return nil }

func (a app) source(t testing.TB) bundle.Source {
	m, _, _ := a.manifest(t)
	all := a.contents()
	return bundle.Source{Manifest: m, Open: func(f *release.File) (bundle.File, error) {
		return content{bytes.NewReader([]byte(all[f.SHA256]))}, nil
	}}
}

// bundled is the bundle for what the plan says is missing of a, based on base if that is on the host.
func bundled(t testing.TB, s *Store, a app, base *app) (digest, id string, b []byte) {
	t.Helper()
	m, raw, digest := a.manifest(t)
	facts := here
	facts.Bundle = true
	p, err := s.Plan(t.Context(), raw, facts)
	if err != nil {
		t.Fatal(err)
	}
	var from bundle.Source
	var r bundle.Recipe
	if base == nil {
		r = bundle.Choose(m, p.Lacks, nil, "")
	} else {
		from = base.source(t)
		_, _, baseDigest := base.manifest(t)
		r = bundle.Choose(m, p.Lacks, from.Manifest, baseDigest)
	}
	var out bytes.Buffer
	if err := bundle.Write(t.Context(), &out, r, from, a.source(t)); err != nil {
		t.Fatal(err)
	}
	return digest, r.ID(digest), out.Bytes()
}

var (
	first = app{version: "1", files: map[string]string{"big": strings.Repeat("all work and no play ", 9_000), "moved": "stays the same", "empty": "",
		"a name with spaces, ümlauts": "x", "page.1a2b3c.js": strings.Repeat("function(){}", 2_000)}}
	second = app{version: "2", files: map[string]string{"big": "now: " + strings.Repeat("all work and no play ", 9_000), "else/where": "stays the same",
		"empty": "", "twice": "new", "again": "new", "page.4d5e6f.js": strings.Repeat("function(){}", 2_000) + "more"}}
)

func TestBundle_OnlyWhatIsNewIsSent(t *testing.T) {
	s := open(t, t.TempDir())
	for _, step := range []struct {
		a    app
		base *app
		most int
	}{{first, nil, 400}, {second, &first, 400}} {
		digest, id, b := bundled(t, s, step.a, step.base)
		if err := s.Receive(t.Context(), digest, id, 0, bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
		if err := s.Rebuild(t.Context(), digest, id); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Complete(t.Context(), digest); err != nil {
			t.Fatal(err)
		}
		whole(t, s, step.a.version)
		if len(b) > step.most {
			t.Errorf("release %s took %d bytes", step.a.version, len(b))
		}
	}
}

func TestBundle_CutAnywhere_GoesOnToTheByte(t *testing.T) {
	s := open(t, t.TempDir())
	push(t, s, first)
	digest, id, b := bundled(t, s, second, &first)
	for at := 0; at < len(b); {
		n := min(37, len(b)-at)
		cut := iotest.TimeoutReader(iotest.OneByteReader(bytes.NewReader(b[at : at+n]))) // fails at its second byte
		if err := s.Receive(t.Context(), digest, id, int64(at), cut); err == nil && n > 1 {
			t.Fatal("a cut went unnoticed")
		}
		_, raw, _ := second.manifest(t)
		facts := here
		facts.Bundle = true
		p, err := s.Plan(t.Context(), raw, facts)
		if err != nil || p.Arrived[id] != int64(at)+1 {
			t.Fatalf("after %d bytes the plan says %v, %v", at+1, p.Arrived, err)
		}
		at++
	}
	if err := s.Rebuild(t.Context(), digest, id); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Complete(t.Context(), digest); err != nil {
		t.Fatal(err)
	}
	whole(t, s, "2")
}

func TestBundle_BaseIsDamaged_IsRefusedAndNoticed(t *testing.T) {
	s := open(t, t.TempDir())
	push(t, s, first)
	digest, id, b := bundled(t, s, second, &first)
	big := filepath.Join(s.Dir(), "releases", "1", "files", "big")
	if err := os.Chmod(big, 0o644); err != nil {
		t.Fatal(err)
	}
	write(t, big, strings.Repeat("ALL work and no play ", 9_000))
	if err := bringIn(t, s, digest, id, b); !errors.Is(err, api.ErrBundle) {
		t.Fatalf("rebuilt from a damaged base: %v", err)
	}
	if !s.isRotten("releases/1/files/big") {
		t.Error("the damaged file is believed as before")
	}
	// without a base it goes on
	digest, id, b = bundled(t, s, second, nil)
	if err := s.Receive(t.Context(), digest, id, 0, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	if err := s.Rebuild(t.Context(), digest, id); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Complete(t.Context(), digest); err != nil {
		t.Fatal(err)
	}
	whole(t, s, "2")
}

func TestBundle_Hostile(t *testing.T) {
	s := open(t, t.TempDir())
	push(t, s, first)
	digest, id, good := bundled(t, s, second, &first)
	_, _, other := bundled(t, s, app{version: "3", files: map[string]string{"big": "another"}}, nil)
	for name, b := range map[string][]byte{
		"nothing":           nil,
		"nonsense":          []byte("nonsense"),
		"cut short":         good[:len(good)-1],
		"of another":        other,
		"files that no one": []byte("hdb1\x20" + `{"to":[[0,999999999]]}          `),
		"a negative file":   []byte("hdb1\x14" + `{"to":[[-5,0]]}     `),
		"a base not here":   []byte("hdb1\x50" + `{"base":"` + strings.Repeat("0", 60) + `","to":[]}  `),
	} {
		if err := bringIn(t, s, digest, id, b); !errors.Is(err, api.ErrBundle) {
			t.Errorf("%s: %v, want ErrBundle", name, err)
		}
		if _, err := s.Complete(t.Context(), digest); !errors.Is(err, api.ErrIncomplete) {
			t.Errorf("%s: completed: %v", name, err)
		}
	}
	if err := s.Receive(t.Context(), digest, id, 5, bytes.NewReader(good)); !errors.Is(err, api.ErrIncomplete) {
		t.Errorf("a hole: %v", err)
	}
	if err := s.Receive(t.Context(), digest, "../../x", 0, bytes.NewReader(good)); !errors.Is(err, api.ErrBadRequest) {
		t.Errorf("a path that climbs: %v", err)
	}
}

// A bundle whose beginning is good and that never ends.
func TestReceive_EndsWithWhatAReleaseCanTake(t *testing.T) {
	s := open(t, t.TempDir())
	digest, id, _ := bundled(t, s, first, nil)
	if err := s.rebuilding.take(t.Context()); err != nil { // or it is refused for what is in it
		t.Fatal(err)
	}
	defer s.rebuilding.give()
	if err := s.Receive(t.Context(), digest, id, 0, zeros{}); !errors.Is(err, api.ErrBadRequest) {
		t.Errorf("got %v", err)
	}
}

// bringIn receives a bundle and rebuilds it.
func bringIn(t *testing.T, s *Store, digest, id string, b []byte) error {
	t.Helper()
	if err := s.Receive(t.Context(), digest, id, 0, bytes.NewReader(b)); err != nil {
		return err
	}
	return s.Rebuild(t.Context(), digest, id)
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestRebuild_IsGentle(t *testing.T) {
	nice := func() int { // the kernel says 20 less the niceness
		n, err := unix.Getpriority(unix.PRIO_PROCESS, unix.Gettid())
		if err != nil {
			t.Fatal(err)
		}
		return 20 - n
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, within := nice(), 0
	if err := gently(func() error { within = nice(); return nil }); err != nil {
		t.Fatal(err)
	}
	if within < 10 || nice() != before {
		t.Errorf("niceness %d, within %d, afterwards %d", before, within, nice())
	}
}
