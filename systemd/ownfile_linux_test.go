package systemd

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestWriteOwn(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "chat.service")
	for _, c := range []struct {
		text string
		mode os.FileMode
		verb string
	}{
		{"one", 0o644, "created"},
		{"one", 0o644, ""},
		{"two", 0o644, "updated"},
		{"two", 0o600, "changed the mode of"},
		{"two", 0o600, ""},
	} {
		verb, err := writeOwn(path, []byte(c.text), c.mode)
		if err != nil || verb != c.verb {
			t.Errorf("write %q %v: %q, %v; want %q", c.text, c.mode, verb, err, c.verb)
		}
		text, _ := os.ReadFile(path)
		info, err := os.Stat(path)
		if err != nil || string(text) != c.text || info.Mode() != c.mode {
			t.Errorf("there is %q, %v, %v", text, info.Mode(), err)
		}
	}
	if names := namesIn(t, dir); !slices.Equal(names, []string{"chat.service"}) {
		t.Errorf("left behind: %q", names)
	}
}

func TestWriteOwn_AReaderOfTheOldFileKeepsIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "chat.toml")
	if _, err := writeOwn(path, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	reader, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if _, err := writeOwn(path, []byte("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	text := make([]byte, 3)
	if _, err := reader.Read(text); err != nil || string(text) != "old" {
		t.Errorf("the reader sees %q, %v: the file was written in place", text, err)
	}
}

func TestWriteOwn_OnlyPlainFiles(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	if err := os.WriteFile(target, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	odd := map[string]func(string) error{
		"link":       func(p string) error { return os.Symlink(target, p) },
		"dead link":  func(p string) error { return os.Symlink(dir+"/nowhere", p) },
		"folder":     func(p string) error { return os.Mkdir(p, 0o755) },
		"pipe":       func(p string) error { return syscall.Mkfifo(p, 0o600) },
		"huge thing": func(p string) error { return os.WriteFile(p, make([]byte, maxOwnFile+1), 0o600) },
	}
	for name, make := range odd {
		path := filepath.Join(dir, name)
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		if verb, err := writeOwn(path, []byte("x"), 0o644); !errors.Is(err, ErrForeign) {
			t.Errorf("%s: %q, %v", name, verb, err)
		}
	}
	if text, _ := os.ReadFile(target); string(text) != "precious" {
		t.Errorf("the target now holds %q", text)
	}
}

func TestWriteOwn_FailedWriteLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	if _, err := writeOwn(filepath.Join(dir, "absent", "x"), nil, 0o644); err == nil {
		t.Error("no error though the folder is absent")
	}
	blocked := filepath.Join(dir, "folder")
	if err := os.MkdirAll(filepath.Join(blocked, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := replaceFile(blocked, []byte("text"), 0o644); err == nil {
		t.Error("a folder was replaced by a file")
	}
	if names := namesIn(t, dir); !slices.Equal(names, []string{"folder"}) {
		t.Errorf("left behind: %q", names)
	}
}

func namesIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestMakeFolders_AgainChangesNothing(t *testing.T) {
	root := filepath.Join(t.TempDir(), "chat")
	uid, gid := os.Getuid(), os.Getgid()
	first, err := makeFolders(root, uid, gid)
	if err != nil || len(first) != len(folders)+1 {
		t.Fatalf("first run: %q, %v", first, err)
	}
	for _, f := range folders {
		info, err := os.Lstat(filepath.Join(root, f.name))
		if err != nil || info.Mode() != f.mode|os.ModeDir {
			t.Errorf("%s: %v, %v; want %v", f.name, info.Mode(), err, f.mode)
		}
	}
	if err := os.WriteFile(filepath.Join(root, envFile), []byte("SECRET=1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err := makeFolders(root, uid, gid); err != nil || again != nil {
		t.Errorf("second run: %q, %v", again, err)
	}
	if text, _ := os.ReadFile(filepath.Join(root, envFile)); string(text) != "SECRET=1" {
		t.Errorf("the env file now holds %q", text)
	}
}

func TestMakeFolders_LinksAreNotFollowed(t *testing.T) {
	for _, name := range []string{"releases", "incoming", "shared", "state", envFile} {
		root, target := filepath.Join(t.TempDir(), "chat"), t.TempDir()
		if err := os.Mkdir(root, 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(target, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, link := range []string{target, "."} { // out of the root, and inside it
			os.Remove(filepath.Join(root, name))
			if err := os.Symlink(link, filepath.Join(root, name)); err != nil {
				t.Fatal(err)
			}
			if changes, err := makeFolders(root, os.Getuid(), os.Getgid()); !errors.Is(err, ErrForeign) {
				t.Errorf("%s is a link to %s: %q, %v", name, link, changes, err)
			}
		}
		if info, err := os.Stat(target); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("the target of %s is now %v, %v", name, info.Mode(), err)
		}
	}
}

func TestDecodeSetupSpec(t *testing.T) {
	spec, err := DecodeSetupSpec(strings.NewReader(`{"service":"chat","daemon_path":"/d","watchdog":1000000000,"sockets":[{"name":"web","network":"tcp","address":":80"}],"config_text":"x","start":true}`))
	if err != nil || spec.Service != "chat" || spec.Watchdog.Seconds() != 1 || spec.Sockets[0].Name != "web" || !spec.Start {
		t.Errorf("%+v, %v", spec, err)
	}
	for name, text := range map[string]string{
		"nothing":         "",
		"not JSON":        "service = chat",
		"an unknown key":  `{"service":"chat","remove":true}`,
		"two of them":     `{"service":"chat"} {"service":"chat"}`,
		"cut in two":      `{"service":"chat"`,
		"of another type": `{"service":1}`,
		"too long":        `{"service":"` + strings.Repeat("x", maxSetupSpec) + `"}`,
	} {
		if spec, err := DecodeSetupSpec(strings.NewReader(text)); !errors.Is(err, ErrInvalidSpec) {
			t.Errorf("%s: %+v, %v", name, spec, err)
		}
	}
}

func FuzzDecodeSetupSpec(f *testing.F) {
	f.Add(`{"service":"chat","daemon_path":"/opt/d","root":"/srv/x","config_path":"/etc/hotdeploy/x.toml","deploy_group_members":["a"]}`)
	f.Add(`{"service":"chat","daemon_path":"/d","root":"/0"}`)
	f.Add(`{"service":"../x","sockets":[{"mode":4294967295,"network":"unix","address":"/a"}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		spec, err := DecodeSetupSpec(strings.NewReader(text))
		if err != nil {
			return
		}
		spec = spec.WithDefaults()
		if spec.Validate() != nil {
			return
		}
		if filepath.Dir(spec.ConfigPath) != configDir || filepath.Dir(spec.Root) == "/" || spec.User == "root" {
			t.Errorf("accepted %+v", spec)
		}
	})
}

func TestReport_Lines(t *testing.T) {
	if got := (Report{}).Lines(); !slices.Equal(got, []string{"nothing to change"}) {
		t.Errorf("%q", got)
	}
	r := Report{Changes: []string{"created user chat"}, RestartNeeded: []string{"x changed"}, Notes: []string{"y"}}
	if got := r.Lines(); !slices.Equal(got, []string{"created user chat", "restart needed: x changed", "note: y"}) {
		t.Errorf("%q", got)
	}
}
