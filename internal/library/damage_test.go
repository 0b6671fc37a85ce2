package library_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/library"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

func TestLibrary_ManifestThatCannotBeRead_NothingIsPruned(t *testing.T) {
	everywhere(t, func(t *testing.T, l *library.Library, dir string) {
		rel := pack(t, "1", map[string]string{"run": "#!/bin/sh\n"})
		if err := l.Add(t.Context(), rel); err != nil {
			t.Fatal(err)
		}
		manifest, aside := filepath.Join(dir, "releases", rel.Digest), filepath.Join(dir, "aside")
		if err := errors.Join(os.Rename(manifest, aside), os.Symlink(rel.Digest, manifest)); err != nil { // one that leads to itself
			t.Fatal(err)
		}
		if err := l.Prune(time.Now().Add(2*time.Hour), library.Usual); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("pruned: %v", err)
		}
		if list, err := l.List(); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("list %v, %v", list, err)
		}
		if err := os.Rename(aside, manifest); err != nil {
			t.Fatal(err)
		}
		if got, err := contentOf(t, l, rel, "run"); err != nil || got != "#!/bin/sh\n" {
			t.Errorf("when it can be read again: %q, %v", got, err)
		}
	})
}

func TestLibrary_AReleaseThatIsForgotten_IsRepairedByAdd(t *testing.T) {
	everywhere(t, func(t *testing.T, l *library.Library, dir string) {
		rel := pack(t, "1", map[string]string{"run": "#!/bin/sh\n", "other": "y"})
		if err := l.Add(t.Context(), rel); err != nil {
			t.Fatal(err)
		}
		contents, _ := filepath.Glob(filepath.Join(dir, "contents/*/*"))
		for what, harm := range map[string]func(name string) error{
			"missing": os.Remove,
			"damaged": func(name string) error { return os.WriteFile(name, []byte("z"), 0o600) },
		} {
			for _, name := range contents {
				if err := harm(name); err != nil {
					t.Fatal(err)
				}
			}
			for _, name := range []string{"run", "other"} {
				if _, err := contentOf(t, l, rel, name); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: %v", what, err)
				}
			}
			if err := errors.Join(l.Forget(rel.Digest), l.Add(t.Context(), rel)); err != nil {
				t.Fatal(err)
			}
			for name, want := range map[string]string{"run": "#!/bin/sh\n", "other": "y"} {
				if got, err := contentOf(t, l, rel, name); err != nil || got != want {
					t.Errorf("%s, added again: %q, %v", what, got, err)
				}
			}
		}
	})
}

func TestLibrary_ReleaseOfANewerHotdeploy_StaysWithItsContents(t *testing.T) {
	everywhere(t, func(t *testing.T, l *library.Library, dir string) {
		old := pack(t, "1", map[string]string{"run": "#!/bin/sh\n"})
		if err := l.Add(t.Context(), old); err != nil {
			t.Fatal(err)
		}
		// The newer one's manifest: there is none of the old one any more, so that its content stands for one that nobody here knows of.
		newer := []byte(`{"format":1000,"contents":"elsewhere"}`)
		manifest, large := filepath.Join(dir, "releases", release.Digest(newer)), filepath.Join(dir, "releases", release.Digest([]byte("large")))
		err := errors.Join(os.Remove(filepath.Join(dir, "releases", old.Digest)), os.WriteFile(manifest, newer, 0o600),
			os.WriteFile(large, nil, 0o600), os.Truncate(large, release.MaxManifestBytes+1))
		if err != nil {
			t.Fatal(err)
		}
		if list, err := l.List(); err != nil || len(list) != 0 {
			t.Errorf("list %v, %v", list, err)
		}
		if digest, any := l.Latest("chat", ""); digest != "" || any {
			t.Errorf("latest %q, %v", digest, any)
		}
		if err := l.Prune(time.Now().Add(2*time.Hour), library.Usual); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{manifest, large} {
			if _, err := os.Stat(name); err != nil {
				t.Error(err)
			}
		}
		if _, err := contentOf(t, l, old, "run"); err != nil {
			t.Errorf("a content that may be its own: %v", err)
		}
		if err := l.Prune(time.Now().Add(library.Usual.Age+time.Hour), library.Usual); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{manifest, large} {
			if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("not used for long: %v", err)
			}
		}
		if _, err := contentOf(t, l, old, "run"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a content of nobody: %v", err)
		}
	})
}
