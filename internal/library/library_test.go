package library_test

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pkg/sftp"

	"github.com/hotdeploy/hotdeploy/internal/library"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// everywhere runs a story with a library in a folder here and in one over SFTP. dir is where it lies.
func everywhere(t *testing.T, story func(t *testing.T, l *library.Library, dir string)) {
	t.Run("in a folder", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "made", "here")
		f, err := library.Dir(dir)
		if err != nil {
			t.Fatal(err)
		}
		l := library.New(f)
		defer l.Close()
		story(t, l, dir)
	})
	t.Run("over SFTP", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "made", "there")
		client, end := serve(t)
		f, err := library.Over(client, dir, end)
		if err != nil {
			t.Fatal(err)
		}
		l := library.New(f)
		defer l.Close()
		story(t, l, dir)
	})
}

func serve(t *testing.T) (*sftp.Client, io.Closer) {
	t.Helper()
	here, there := net.Pipe()
	s, err := sftp.NewServer(there)
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve() // ends with the pipe
	client, err := sftp.NewClientPipe(here, here)
	if err != nil {
		t.Fatal(err)
	}
	return client, here
}

func pack(t *testing.T, version string, files map[string]string) *release.Packed {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	spec := release.Spec{}
	spec.Run.Command = []string{"./run"}
	spec.SetDefaults()
	rel, err := release.Pack(t.Context(), release.PackOptions{Dir: dir, Service: "chat", Version: version, Files: []string{"**"}, Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	return rel
}

func contentOf(t *testing.T, l *library.Library, rel *release.Packed, name string) (string, error) {
	t.Helper()
	for i := range rel.Manifest.Files {
		f := &rel.Manifest.Files[i]
		if f.Path != name {
			continue
		}
		r, err := l.Content(t.Context(), f)
		if err != nil {
			return "", err
		}
		defer r.Close()
		b := make([]byte, f.Size)
		if _, err := r.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		return string(b), nil
	}
	t.Fatalf("no file %s", name)
	return "", nil
}

func TestLibrary_GivesWhatWasAdded(t *testing.T) {
	everywhere(t, func(t *testing.T, l *library.Library, _ string) {
		rel := pack(t, "1", map[string]string{"run": "#!/bin/sh\n", "data/empty": "", "data/same": "x", "same": "x"})
		if list, err := l.List(); err != nil || len(list) != 0 {
			t.Fatalf("empty, it has %v, %v", list, err)
		}
		for range 2 {
			if err := l.Add(t.Context(), rel); err != nil {
				t.Fatal(err)
			}
		}
		m, raw, err := l.Manifest(rel.Digest)
		if err != nil || string(raw) != string(rel.Bytes) || m.Version != "1" {
			t.Fatalf("manifest %v, %v", m, err)
		}
		if got, err := contentOf(t, l, rel, "run"); err != nil || got != "#!/bin/sh\n" {
			t.Errorf("content %q, %v", got, err)
		}
		if list, err := l.List(); err != nil || len(list) != 1 || list[0].Ref != rel.Ref() || list[0].Service != "chat" || list[0].Files != 4 {
			t.Errorf("list %+v, %v", list, err)
		}
	})
}

func TestLibrary_DamageIsAbsence(t *testing.T) {
	everywhere(t, func(t *testing.T, l *library.Library, dir string) {
		rel := pack(t, "1", map[string]string{"run": "#!/bin/sh\n", "other": "y"})
		if err := l.Add(t.Context(), rel); err != nil {
			t.Fatal(err)
		}
		for _, pattern := range []string{"contents/*/*", "releases/*"} {
			found, _ := filepath.Glob(filepath.Join(dir, pattern))
			for _, name := range found {
				if err := os.WriteFile(name, []byte("#!/bin/su\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		for range 2 {
			if _, err := contentOf(t, l, rel, "run"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a damaged content: %v", err)
			}
			if _, _, err := l.Manifest(rel.Digest); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a damaged manifest: %v", err)
			}
		}
		if _, _, err := l.Manifest("../../etc/passwd"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a name that climbs: %v", err)
		}
		if err := l.Add(t.Context(), rel); err != nil {
			t.Fatal(err)
		}
		if got, err := contentOf(t, l, rel, "run"); err != nil || got != "#!/bin/sh\n" {
			t.Errorf("added again: %q, %v", got, err)
		}
	})
}

func TestLibrary_PruneByAgeAndSize(t *testing.T) {
	everywhere(t, func(t *testing.T, l *library.Library, dir string) {
		var rels []*release.Packed
		for i, v := range []string{"1", "2", "3"} {
			rel := pack(t, v, map[string]string{"run": "#!/bin/sh\n", "own": string(make([]byte, 1000+i))})
			if err := l.Add(t.Context(), rel); err != nil {
				t.Fatal(err)
			}
			rels = append(rels, rel)
			used := time.Now().Add(-time.Duration(10-i) * 24 * time.Hour)
			if err := os.Chtimes(filepath.Join(dir, "releases", rel.Digest), used, used); err != nil {
				t.Fatal(err)
			}
		}
		later := time.Now().Add(2 * time.Hour) // nothing is young any more
		left := func(what string, keep library.Limits, want ...string) {
			t.Helper()
			if err := l.Prune(later, keep); err != nil {
				t.Fatal(err)
			}
			list, err := l.List()
			if err != nil || len(list) != len(want) {
				t.Fatalf("%s: left %+v, %v; want %v", what, list, err, want)
			}
			for i, info := range list {
				if info.Version != want[i] {
					t.Errorf("%s: left %+v, want %v", what, list, want)
				}
			}
		}
		left("enough room", library.Usual, "3", "2", "1")
		left("one too old", library.Limits{Age: 9*24*time.Hour + 12*time.Hour, Bytes: 1 << 20}, "3", "2")
		if _, err := contentOf(t, l, rels[0], "own"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("its own content: %v", err)
		}
		if _, err := contentOf(t, l, rels[0], "run"); err != nil {
			t.Errorf("what it shares: %v", err)
		}
		left("no room at all", library.Limits{Age: time.Hour, Bytes: 1}, "3")
		if _, err := contentOf(t, l, rels[2], "own"); err != nil {
			t.Errorf("the last one's content: %v", err)
		}
	})
}

func TestLibrary_LatestIsOfTheServiceAndAnother(t *testing.T) {
	everywhere(t, func(t *testing.T, l *library.Library, dir string) {
		if digest, any := l.Latest("chat", ""); digest != "" || any {
			t.Errorf("of nothing: %q, %v", digest, any)
		}
		var digests []string
		for i, v := range []string{"1", "2", "3"} {
			rel := pack(t, v, map[string]string{"run": "#!/bin/sh\n"})
			if err := l.Add(t.Context(), rel); err != nil {
				t.Fatal(err)
			}
			used := time.Now().Add(-time.Duration(10-i) * time.Hour)
			if err := os.Chtimes(filepath.Join(dir, "releases", rel.Digest), used, used); err != nil {
				t.Fatal(err)
			}
			digests = append(digests, rel.Digest)
		}
		if digest, any := l.Latest("chat", "new"); digest != digests[2] || !any {
			t.Errorf("got %q, %v", digest, any)
		}
		if digest, any := l.Latest("chat", digests[2]); digest != digests[1] || !any {
			t.Errorf("besides the last: %q, %v", digest, any)
		}
		if digest, any := l.Latest("another", ""); digest != "" || any {
			t.Errorf("of another service: %q, %v", digest, any)
		}
	})
}

func TestLibrary_PruneDaily_OnceADay(t *testing.T) {
	everywhere(t, func(t *testing.T, l *library.Library, dir string) {
		for i, v := range []string{"1", "2"} {
			rel := pack(t, v, map[string]string{"run": "#!/bin/sh\n"})
			if err := l.Add(t.Context(), rel); err != nil {
				t.Fatal(err)
			}
			used := time.Now().Add(-time.Duration(2-i) * time.Hour)
			if err := os.Chtimes(filepath.Join(dir, "releases", rel.Digest), used, used); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range []struct {
			at   time.Time
			keep library.Limits
			left int
		}{
			{time.Now(), library.Usual, 2},
			{time.Now().Add(time.Hour), library.Limits{Age: time.Minute}, 2},
			{time.Now().Add(25 * time.Hour), library.Limits{Age: time.Minute}, 1},
		} {
			if err := l.PruneDaily(c.at, c.keep); err != nil {
				t.Fatal(err)
			}
			if list, err := l.List(); err != nil || len(list) != c.left {
				t.Errorf("at %v: %d left, %v; want %d", c.at, len(list), err, c.left)
			}
		}
	})
}
