package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

var one = app{version: "1", files: map[string]string{
	"bin/tool*":      "tool one",
	"lib/a.txt":      "the same",
	"lib/b.txt":      "the same",
	"lib/c.sh*":      "the same",
	"lib/deep/d":     strings.Repeat("d", 300<<10),
	"empty":          "",
	"latest":         "->lib/deep/d",
	"lib/deep/up":    "->../../run",
	"lib/directory":  "->deep",
	"unicode/größe ": "x",
}}

func TestAnUploadBecomesAReadOnlyRelease(t *testing.T) {
	s := open(t, t.TempDir())
	r := push(t, s, one)
	whole(t, s, "1")
	for p, content := range one.files {
		if strings.HasPrefix(content, "->") {
			continue
		}
		f := fileOf(p, content)
		name := filepath.Join(r.FilesDir, f.Path)
		got, err := os.ReadFile(name)
		if err != nil || string(got) != content {
			t.Errorf("%s: %v, %d bytes", f.Path, err, len(got))
		}
		want := os.FileMode(f.Mode) &^ 0o222
		if fi, err := os.Stat(name); err != nil || fi.Mode() != want {
			t.Errorf("%s: mode %v, want %v", f.Path, fi.Mode(), want)
		}
	}
	for _, d := range []string{".", "files", "files/lib/deep"} {
		if fi, err := os.Stat(filepath.Join(r.Dir, d)); err != nil || fi.Mode().Perm() != 0o555 {
			t.Errorf("directory %s: %v %v", d, fi.Mode(), err)
		}
	}
	if got, err := os.ReadFile(filepath.Join(r.FilesDir, "lib/deep/up")); err != nil || string(got) != runScript {
		t.Errorf("symlink: %q, %v", got, err)
	}
	if exists(filepath.Join(s.Dir(), "incoming", r.Digest)) {
		t.Error("the upload is still there")
	}
}

func TestCompletingTwiceIsTheSameAsOnce(t *testing.T) {
	s := open(t, t.TempDir())
	r := push(t, s, one)
	info, err := s.Complete(t.Context(), r.Digest)
	if err != nil || info.Ref != r.Ref || info.Files != len(r.Manifest.Files) || info.Bytes != r.Manifest.TotalBytes() {
		t.Errorf("got %+v, %v", info, err)
	}
	_, raw, _ := one.manifest(t)
	p, err := s.Plan(t.Context(), raw, here)
	if err != nil || !p.Complete || len(p.Missing) != 0 {
		t.Errorf("plan: %+v, %v", p, err)
	}
	if exists(filepath.Join(s.Dir(), "incoming", r.Digest)) {
		t.Error("a plan for a complete release began an upload")
	}
}

func TestManyCompleteTheSameUploadAtOnce(t *testing.T) {
	s := open(t, t.TempDir())
	digest := send(t, s, one)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := s.Complete(t.Context(), digest); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			_, raw, _ := one.manifest(t)
			if _, err := s.Plan(t.Context(), raw, here); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	whole(t, s, "1")
}

func TestAnUploadGoesOnWhereItWas(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	missing, digest := plan(t, s, one)
	if len(missing) != 5 { // run, tool, the same, d, x; an empty file is not sent
		t.Fatalf("missing %v", missing)
	}
	write(t, part(s, digest, "tool one"), "tool")
	write(t, part(s, digest, "the same"), "the same")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	missing, _ = plan(t, s, one)
	if at, ok := missing[release.Digest([]byte("tool one"))]; !ok || at != 4 {
		t.Errorf("half a part: missing %v at %d", ok, at)
	}
	if _, ok := missing[release.Digest([]byte("the same"))]; ok {
		t.Error("a whole part is missing")
	}
	if _, err := s.Complete(t.Context(), digest); !errors.Is(err, api.ErrIncomplete) || !strings.Contains(err.Error(), "bin/tool") {
		t.Errorf("half an upload: %v", err)
	}
	if list, err := s.List(); len(list) != 0 || err != nil {
		t.Errorf("half an upload is a release: %v, %v", list, err)
	}
	push(t, s, one)
	whole(t, s, "1")
}

func TestAPartThatArrivedDamagedIsNamedAndSentAgain(t *testing.T) {
	s := open(t, t.TempDir())
	digest := send(t, s, one)
	write(t, part(s, digest, "tool one"), "tool 0ne")
	write(t, part(s, digest, "x"), "y")
	_, err := s.Complete(t.Context(), digest)
	if !errors.Is(err, api.ErrDigest) || !strings.Contains(err.Error(), "bin/tool") || !strings.Contains(err.Error(), "unicode/") {
		t.Fatalf("got %v", err)
	}
	if exists(filepath.Join(s.Dir(), "releases", "1")) {
		t.Fatal("there is a release")
	}
	missing, _ := plan(t, s, one)
	if len(missing) != 2 || missing[release.Digest([]byte("tool one"))] != 0 {
		t.Errorf("missing now: %v", missing)
	}
	push(t, s, one)
	whole(t, s, "1")
}

func TestContentOfOtherReleasesIsNotSentAgain(t *testing.T) {
	s := open(t, t.TempDir())
	push(t, s, one)
	two := app{version: "2", files: map[string]string{
		"bin/tool*": "tool two", "lib/deep/d": one.files["lib/deep/d"], "moved/e*": one.files["lib/deep/d"], "lib/a.txt": "the same",
		"no-longer-executable": runScript, "bin/was": "x", // other modes than in release 1
	}, edit: func(m *release.Manifest) {
		for i := range m.Files {
			if m.Files[i].Path == "bin/was" {
				m.Files[i].Mode = 0o755
			}
		}
	}}
	_, raw, _ := two.manifest(t)
	p, err := s.Plan(t.Context(), raw, here)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Missing) != 1 || p.Missing[0].SHA256 != release.Digest([]byte("tool two")) {
		t.Errorf("missing: %v", p.Missing)
	}
	if want := int64(300<<10 + len("the same") + len(runScript) + len("x")); p.Reused != want {
		t.Errorf("reused %d, want %d", p.Reused, want)
	}
	r := push(t, s, two)
	whole(t, s, "1")
	whole(t, s, "2")
	a, _ := os.Stat(filepath.Join(s.Dir(), "releases/1/files/lib/deep/d"))
	b, _ := os.Stat(filepath.Join(r.FilesDir, "lib/deep/d"))
	if !os.SameFile(a, b) {
		t.Error("the same content with the same mode is there twice")
	}
	if fi, _ := os.Stat(filepath.Join(r.FilesDir, "moved/e")); os.SameFile(a, fi) || fi.Mode() != 0o555 {
		t.Errorf("content with another mode: %v", fi.Mode())
	}
}

func TestDamagedContentOfAnotherReleaseIsNotTakenAndAskedForInstead(t *testing.T) {
	s := open(t, t.TempDir())
	r := push(t, s, one)
	damage(t, filepath.Join(r.FilesDir, "bin/tool"), "tool 0ne")
	two := app{version: "2", files: map[string]string{"bin/tool*": "tool one"}}
	if missing, _ := plan(t, s, two); len(missing) != 0 {
		t.Fatalf("missing: %v", missing)
	}
	_, _, digest := two.manifest(t)
	if _, err := s.Complete(t.Context(), digest); !errors.Is(err, api.ErrIncomplete) {
		t.Fatalf("got %v", err)
	}
	if missing, _ := plan(t, s, two); len(missing) != 1 {
		t.Fatalf("missing after the damage was found: %v", missing)
	}
	push(t, s, two)
	whole(t, s, "2")
}

func TestDamageOnTheDiskIsFound(t *testing.T) {
	for name, do := range map[string]func(t *testing.T, files string){
		"bin/tool":  func(t *testing.T, files string) { damage(t, filepath.Join(files, "bin/tool"), "tool 0ne") },
		"lib/a.txt": func(t *testing.T, files string) { damage(t, filepath.Join(files, "lib/a.txt"), "the sam") },
		"run":       func(t *testing.T, files string) { must(t, os.Chmod(filepath.Join(files, "run"), 0o444)) },
		"empty": func(t *testing.T, files string) {
			must(t, os.Chmod(files, 0o755))
			must(t, os.Remove(filepath.Join(files, "empty")))
		},
		"latest":      func(t *testing.T, files string) { relink(t, filepath.Join(files, "latest"), "run") },
		"lib/deep/d":  func(t *testing.T, files string) { relink(t, filepath.Join(files, "lib/deep/d"), "/etc/passwd") },
		"lib/deep/up": func(t *testing.T, files string) { relink(t, filepath.Join(files, "lib/deep"), "/etc") },
		"data":        func(t *testing.T, files string) { relink(t, filepath.Join(files, "data"), "/tmp") },
		"manifest.json": func(t *testing.T, files string) {
			damage(t, filepath.Join(filepath.Dir(files), "manifest.json"), "{}")
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, t.TempDir())
			a := one
			a.edit = func(m *release.Manifest) { m.Spec.Run.Shared = []string{"data"} }
			r := push(t, s, a)
			do(t, r.FilesDir)
			if err := s.Verify(t.Context(), r); !errors.Is(err, api.ErrDigest) || !strings.Contains(err.Error(), name) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestSharedPathsOutliveReleases(t *testing.T) {
	s := open(t, t.TempDir())
	shared := func(m *release.Manifest) { m.Spec.Run.Shared = []string{"data", "var/lib/db"} }
	first := push(t, s, app{version: "1", edit: shared})
	write(t, filepath.Join(first.FilesDir, "data/note"), "kept")
	write(t, filepath.Join(first.FilesDir, "var/lib/db/table"), "rows")
	second := push(t, s, app{version: "2", edit: shared, files: map[string]string{"var/other": "o"}})
	for name, want := range map[string]string{"data/note": "kept", "var/lib/db/table": "rows"} {
		if got, err := os.ReadFile(filepath.Join(second.FilesDir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if got, err := os.ReadFile(filepath.Join(s.Dir(), "shared", name)); err != nil || string(got) != want {
			t.Errorf("shared/%s: %q, %v", name, got, err)
		}
	}
	must(t, s.Remove(t.Context(), "1", nil))
	if !exists(filepath.Join(s.Dir(), "shared/data/note")) {
		t.Error("removing a release removed what is shared")
	}
	whole(t, s, "2")
}

func TestASharedFileThatIsThereIsLeftAlone(t *testing.T) {
	s := open(t, t.TempDir())
	write(t, filepath.Join(s.Dir(), "shared/app.db"), "rows")
	r := push(t, s, app{version: "1", edit: func(m *release.Manifest) { m.Spec.Run.Shared = []string{"app.db"} }})
	if got, err := os.ReadFile(filepath.Join(r.FilesDir, "app.db")); err != nil || string(got) != "rows" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestPartsOfOurOwnAreLinkedAndThoseOfOthersCopied(t *testing.T) {
	if os.Geteuid() != 0 {
		cannot(t, "only root can give a file to another user")
	}
	s := open(t, t.TempDir())
	digest := send(t, s, one)
	ours, theirs := part(s, digest, "tool one"), part(s, digest, "x")
	must(t, os.Lchown(theirs, 12345, 12345))
	before := map[string]os.FileInfo{}
	for _, p := range []string{ours, theirs} {
		before[p], _ = os.Stat(p)
	}
	held, err := os.OpenFile(theirs, os.O_RDWR, 0) // the other user still has it open, and may write later
	must(t, err)
	defer held.Close()
	_, err = s.Complete(t.Context(), digest)
	must(t, err)
	r := whole(t, s, "1")
	tool, _ := os.Stat(filepath.Join(r.FilesDir, "bin/tool"))
	x, _ := os.Stat(filepath.Join(r.FilesDir, "unicode/größe "))
	if !os.SameFile(tool, before[ours]) {
		t.Error("a part of our own was copied")
	}
	if os.SameFile(x, before[theirs]) || x.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Error("another user's part became part of the release")
	}
	held.WriteAt([]byte("evil"), 0)
	whole(t, s, "1")
}

func damage(t *testing.T, name, content string) {
	t.Helper()
	must(t, os.Chmod(name, 0o755))
	fi, err := os.Stat(name)
	must(t, err)
	write(t, name, content)
	must(t, os.Chmod(name, fi.Mode()&^0o222))
}

func relink(t *testing.T, name, target string) {
	t.Helper()
	must(t, os.Chmod(filepath.Dir(name), 0o755))
	makeAllWritable(name)
	must(t, os.RemoveAll(name))
	must(t, os.Symlink(target, name))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
