package store

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpenMakesTheFoldersWhateverTheUmask(t *testing.T) {
	old := unix.Umask(0o077) // no other test runs meanwhile: none is parallel
	defer unix.Umask(old)
	dir := filepath.Join(t.TempDir(), "srv", "chat")
	s := open(t, dir)
	want := map[string]os.FileMode{"releases": 0o750, "incoming": 0o770 | os.ModeSetgid, "shared": 0o750, "state": 0o700}
	for name, mode := range want {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.Mode() != mode|os.ModeDir {
			t.Errorf("%s: %v, %v", name, fi.Mode(), err)
		}
	}
	_, digest := plan(t, s, one)
	if fi, err := os.Stat(filepath.Join(dir, "incoming", digest, "parts")); err != nil || fi.Mode() != want["incoming"]|os.ModeDir {
		t.Errorf("parts: %v, %v", fi.Mode(), err)
	}
	r := push(t, s, one)
	for name, mode := range map[string]os.FileMode{"files/run": 0o555, "files/lib/a.txt": 0o444, "manifest.json": 0o444, "files/lib": 0o555 | os.ModeDir} {
		if fi, err := os.Stat(filepath.Join(r.Dir, name)); err != nil || fi.Mode() != mode {
			t.Errorf("%s: %v, %v", name, fi.Mode(), err)
		}
	}
}

func TestOpenLeavesModesThatSomebodyGave(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "incoming"), 0o700))
	must(t, open(t, dir).Close())
	if fi, err := os.Stat(filepath.Join(dir, "incoming")); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
}

func TestAFolderThatIsNotADirectoryIsTold(t *testing.T) {
	for _, name := range []string{"releases", "incoming", "shared", "state"} {
		for _, target := range []string{"/tmp", ".", "other"} {
			dir := t.TempDir()
			must(t, os.Mkdir(filepath.Join(dir, "other"), 0o755))
			must(t, os.Symlink(target, filepath.Join(dir, name)))
			s, err := Open(dir, "chat")
			if err == nil {
				s.Close()
			}
			if err == nil || !strings.Contains(err.Error(), filepath.Join(dir, name)+" is not a directory") {
				t.Errorf("%s -> %s: %v", name, target, err)
			}
		}
	}
}
