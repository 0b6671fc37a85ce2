package release

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

var ctx = context.Background()

// written packs the sample project and writes it.
func written(t *testing.T) (*Packed, string) {
	t.Helper()
	src := t.TempDir()
	put(t, src, project)
	o := options(src, "public", "current")
	o.Spec.Run.Shared = []string{"data", "var/log"}
	p := pack(t, o)
	dir := filepath.Join(t.TempDir(), "chat-1.0")
	if err := p.WriteTo(ctx, dir); err != nil {
		t.Fatal(err)
	}
	return p, dir
}

func TestWriteTo_WhatItWritesLoadOpens(t *testing.T) {
	p, dir := written(t)
	l, err := Load(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	if l.Digest != p.Digest || !bytes.Equal(l.Bytes, p.Bytes) || l.Ref() != p.Ref() {
		t.Errorf("digest %s became %s", p.Digest, l.Digest)
	}
	if err := verify(t, dir, l.Manifest); err != nil {
		t.Error(err)
	}
	for _, f := range l.Manifest.Files {
		if f.Link != "" {
			continue
		}
		r, err := l.Open(f.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
	}
	again := filepath.Join(t.TempDir(), "again")
	if err := l.WriteTo(ctx, again); err != nil {
		t.Error(err)
	}
}

func verify(t *testing.T, dir string, m *Manifest) error {
	t.Helper()
	root, err := os.OpenRoot(filepath.Join(dir, FilesDir))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	return Verify(ctx, root, m)
}

func TestWriteTo_FilesAreReadOnlyWhateverTheUmask(t *testing.T) {
	old := syscall.Umask(0o77)
	_, dir := written(t)
	syscall.Umask(old)
	for name, want := range map[string]os.FileMode{
		".": 0o755, "manifest.json": 0o444, "files": 0o755, "files/public/js": 0o755, "files/public/index.html": 0o444, "files/bin/app": 0o555,
	} {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", name, info.Mode(), err, want)
		}
	}
}

func TestWriteTo_TheSameReleaseIsThereAlready(t *testing.T) {
	p, dir := written(t)
	if err := p.WriteTo(ctx, dir); err != nil {
		t.Error(err)
	}
	src := t.TempDir()
	put(t, src, map[string]string{"bin/app*": script})
	if err := pack(t, options(src)).WriteTo(ctx, dir); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "another release is there") {
		t.Errorf("another release: got %v", err)
	}
	if err := p.WriteTo(ctx, src); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "something else is there") {
		t.Errorf("something else: got %v", err)
	}
}

func TestWriteTo_LeavesNothingBehindWhenItFails(t *testing.T) {
	src, out := t.TempDir(), t.TempDir()
	put(t, src, map[string]string{"bin/app*": script, "a": "1"})
	p := pack(t, options(src, "a"))
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := p.WriteTo(cancelled, filepath.Join(out, "x")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
	put(t, src, map[string]string{"a": "2"}) // of the same length
	if err := p.WriteTo(ctx, filepath.Join(out, "x")); err == nil || !strings.Contains(err.Error(), `"a": changed since it was packed: pack again`) {
		t.Errorf("changed: got %v", err)
	}
	if entries, err := os.ReadDir(out); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestLoad_RefusesWhatIsNotComplete(t *testing.T) {
	for _, c := range []struct {
		name  string
		wreck func(dir string) error
		want  string
	}{
		{"no manifest", func(d string) error { return os.Remove(filepath.Join(d, ManifestName)) }, "not a packed release"},
		{"a cut manifest", func(d string) error { return overwrite(filepath.Join(d, ManifestName), "{") }, "unexpected end of JSON"},
		{"no files", func(d string) error { return os.RemoveAll(filepath.Join(d, FilesDir)) }, "no such file"},
		{"a file is missing", func(d string) error { return os.Remove(filepath.Join(d, "files/bin/app")) }, `the release is damaged: "bin/app" is missing`},
		{"a directory is missing", func(d string) error { return os.RemoveAll(filepath.Join(d, "files/public")) }, `"public/index.html" is missing`},
		{"a file is cut", func(d string) error { return overwrite(filepath.Join(d, "files/bin/app"), "x") }, `"bin/app" has 1 bytes instead of 23`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, dir := written(t)
			if err := c.wreck(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := Load(ctx, dir); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
	if _, err := Load(ctx, filepath.Join(t.TempDir(), "nope")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// overwrite gives a read-only file new content and its old mode.
func overwrite(name, text string) error {
	info, err := os.Lstat(name)
	if err != nil {
		return err
	}
	if err := os.Chmod(name, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Chmod(name, info.Mode())
}

func TestVerify_NamesTheFirstBadPath(t *testing.T) {
	const index = "public/index.html"
	replace := func(d, name string, f func(p string) error) error {
		p := filepath.Join(d, name)
		return errors.Join(os.RemoveAll(p), f(p))
	}
	for _, c := range []struct {
		name  string
		wreck func(d string) error
		path  string
		want  string
	}{
		{"other content", func(d string) error { return overwrite(d+"/"+index, "<lmth>") }, index, "has other content: SHA-256 "},
		{"two with other content", func(d string) error {
			return errors.Join(overwrite(d+"/public/js/a.js", "b"), overwrite(d+"/"+index, "<lmth>"))
		}, index, "has other content"},
		{"longer", func(d string) error { return overwrite(d+"/"+index, "<html>\n") }, index, "has 7 bytes instead of 6"},
		{"missing", func(d string) error { return os.Remove(d + "/" + index) }, index, "is missing"},
		{"a directory is missing", func(d string) error { return os.RemoveAll(d + "/bin") }, "bin/app", "is missing"},
		{"a link is missing", func(d string) error { return os.Remove(d + "/current") }, "current", "is missing"},
		{"not executable", func(d string) error { return os.Chmod(d+"/bin/app", 0o644) }, "bin/app", "has mode -rw-r--r-- instead of -rwxr-xr-x"},
		{"executable", func(d string) error { return os.Chmod(d+"/"+index, 0o755) }, index, "has mode"},
		{"writable for others", func(d string) error { return os.Chmod(d+"/"+index, 0o666) }, index, "has mode -rw-rw-rw-"},
		{"setuid", func(d string) error { return os.Chmod(d+"/bin/app", 0o755|os.ModeSetuid) }, "bin/app", "has mode urwx"},
		{"not readable", func(d string) error { return os.Chmod(d+"/"+index, 0o044) }, index, "has mode"},
		{"a file too much", func(d string) error { return os.WriteFile(d+"/public/x", nil, 0o644) }, "public/x", "is not in the manifest"},
		{"a directory too much", func(d string) error { return os.Mkdir(d+"/x", 0o755) }, "x", "is not in the manifest"},
		{"a link too much", func(d string) error { return os.Symlink("bin", d+"/x") }, "x", "is not in the manifest"},
		{"the link leads elsewhere", func(d string) error {
			return replace(d, "current", func(p string) error { return os.Symlink("../public/js", p) })
		}, "current", `leads to "../public/js" instead of "public/js"`},
		{"a file for a link", func(d string) error {
			return replace(d, "current", func(p string) error { return os.WriteFile(p, nil, 0o644) })
		}, "current", "is a regular file instead of a symlink"},
		{"a link for a file, to the same content", func(d string) error {
			return errors.Join(os.Rename(d+"/"+index, d+"/public/js/x"), os.Symlink("js/x", d+"/"+index))
		}, index, "is a symlink instead of a regular file"},
		{"a link for a directory, to the same content", func(d string) error {
			return errors.Join(os.Rename(d+"/public", d+"/../public"), os.Symlink("../public", d+"/public"))
		}, "public", "is a symlink instead of a directory"},
		{"a directory for a file", func(d string) error {
			return replace(d, index, func(p string) error { return os.Mkdir(p, 0o755) })
		}, index, "is a directory instead of a regular file"},
		{"a pipe for a file", func(d string) error {
			return replace(d, index, func(p string) error { return syscall.Mkfifo(p, 0o644) })
		}, index, "is a named pipe instead of a regular file"},
		{"a file for a directory", func(d string) error {
			return replace(d, "public", func(p string) error { return os.WriteFile(p, nil, 0o644) })
		}, "public", "is a regular file instead of a directory"},
		{"the first of many", func(d string) error {
			return errors.Join(os.Remove(d+"/public/js/a.js"), os.WriteFile(d+"/zz", nil, 0o644), os.WriteFile(d+"/aa", nil, 0o644))
		}, "aa", "is not in the manifest"},
		{"a shared path that is a directory", func(d string) error { return os.Mkdir(d+"/data", 0o755) }, "data", "is a directory instead of the symlink"},
		{"a shared path that leads elsewhere", func(d string) error { return os.Symlink("/etc", d+"/data") }, "data", `leads to "/etc" instead of "../../../shared/data"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, dir := written(t)
			if err := c.wreck(filepath.Join(dir, FilesDir)); err != nil {
				t.Fatal(err)
			}
			err := verify(t, dir, p.Manifest)
			var damaged *DamagedError
			if !errors.Is(err, ErrDamaged) || !errors.As(err, &damaged) || damaged.Path != c.path || !strings.Contains(damaged.Problem, c.want) {
				t.Errorf("got  %v\nwant %s %s", err, c.path, c.want)
			}
		})
	}
}

func TestFirstBad_DoesNotDependOnWhoWasFaster(t *testing.T) {
	var bad firstBad
	for _, p := range []string{"c", "a", "b"} {
		bad.add(p, "is missing")
	}
	if want := (&DamagedError{"a", "is missing"}).Error(); bad.get().Error() != want {
		t.Errorf("got %v, want %s", bad.get(), want)
	}
}

func TestVerify_TakesWhatIsAsItShouldBe(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(d string) error
	}{
		{"as written", func(string) error { return nil }},
		{"writable for the owner", func(d string) error { return os.Chmod(d+"/bin/app", 0o755) }},
		{"only for the owner", func(d string) error { return os.Chmod(d+"/bin/app", 0o500) }},
		{"with its shared paths", func(d string) error {
			return errors.Join(os.Symlink(SharedLink("data"), d+"/data"), os.Mkdir(d+"/var", 0o755), os.Symlink(SharedLink("var/log"), d+"/var/log"))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, dir := written(t)
			if err := c.change(filepath.Join(dir, FilesDir)); err != nil {
				t.Fatal(err)
			}
			if err := verify(t, dir, p.Manifest); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestVerify_AnEndedContextIsNoDamage(t *testing.T) {
	p, dir := written(t)
	root, err := os.OpenRoot(filepath.Join(dir, FilesDir))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := Verify(cancelled, root, p.Manifest); !errors.Is(err, context.Canceled) || errors.Is(err, ErrDamaged) {
		t.Errorf("got %v", err)
	}
}

// The symlinks are relative to a release's place on the host.
func TestSharedLink_LeadsFromTheReleaseToShared(t *testing.T) {
	top := t.TempDir()
	put(t, top, map[string]string{
		"shared/data/x": "", "shared/var/log/x": "",
		"releases/1.0/files/data": "->" + SharedLink("data"), "releases/1.0/files/var/log": "->" + SharedLink("var/log"),
	})
	for _, p := range []string{"data", "var/log"} {
		real, err := filepath.EvalSymlinks(filepath.Join(top, "releases/1.0/files", p))
		if err != nil || real != filepath.Join(top, "shared", p) {
			t.Errorf("%s: %s, %v", p, real, err)
		}
	}
}
