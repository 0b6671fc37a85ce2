package release

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

// put writes a file; what ends in * is executable, what begins with -> is a symlink.
func put(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		mode := os.FileMode(0o644)
		if strings.HasSuffix(name, "*") {
			name, mode = strings.TrimSuffix(name, "*"), 0o755
		}
		p := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(p), 0o755)
		if target, ok := strings.CutPrefix(text, "->"); err == nil && ok {
			err = os.Symlink(target, p)
		} else if err == nil {
			err = os.WriteFile(p, []byte(text), mode)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

const script = "#!/bin/sh\nexec sleep 1\n"

// options pack a script at bin/app, and what else is named.
func options(dir string, files ...string) PackOptions {
	o := PackOptions{Dir: dir, Service: "chat", Version: "1.0", Files: append(files, "bin/app")}
	o.Spec.Run.Command = []string{"bin/app"}
	o.Spec.SetDefaults()
	return o
}

func pack(t *testing.T, o PackOptions) *Packed {
	t.Helper()
	p, err := Pack(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func paths(m *Manifest) []string {
	list := []string{}
	for _, f := range m.Files {
		list = append(list, f.Path)
	}
	return list
}

var project = map[string]string{
	"bin/app*": script, "public/index.html": "<html>", "public/js/a.js": "a", "public/js/a.map": "{}", "current": "->public/js",
	".env": "SECRET=1", ".git/HEAD": "ref", "sub/.git": "gitdir: x", "hotdeploy.toml": "service = 1", "data/old.db": "db", "notes.txt": "n",
}

// Releases on hosts are named by their digest: the same project must never get another one.
func TestPack_SameInputSameDigest(t *testing.T) {
	const want = "5638a8d8503fff52327ca41bf7725e55349c50de0eb66bab7d0e2def14b2e321"
	var last string
	for n, umask := range []int{0, 0o22, 0o77} {
		old := syscall.Umask(umask)
		dir := filepath.Join(t.TempDir(), strings.Repeat("x", n+1))
		put(t, dir, project) // in the random order of a map
		syscall.Umask(old)
		when := time.Unix(int64(n)*1e6, 0)
		if err := os.Chtimes(filepath.Join(dir, "notes.txt"), when, when); err != nil {
			t.Fatal(err)
		}
		o := options(dir, "**")
		o.Spec.Run.Shared = []string{"data"}
		p := pack(t, o)
		if last = p.Digest; last != want || Digest(p.Bytes) != want {
			t.Errorf("umask %#o: digest %s, want %s, of\n%s", umask, p.Digest, want, p.Bytes)
		}
		if p.TotalBytes() != int64(len(script)+len("<html>"+"a"+"{}"+"SECRET=1"+"n")) {
			t.Errorf("total bytes %d", p.TotalBytes())
		}
	}
}

func TestPack_TakesWhatThePatternsName(t *testing.T) {
	for _, c := range []struct {
		name           string
		files, exclude []string
		want           []string
	}{
		{"one file", nil, nil, []string{"bin/app"}},
		{"a directory", []string{"public"}, nil, []string{"bin/app", "public/index.html", "public/js/a.js", "public/js/a.map"}},
		{"a directory with stars", []string{"public/**"}, nil, []string{"bin/app", "public/index.html", "public/js/a.js", "public/js/a.map"}},
		{"stars inside", []string{"**/*.js"}, nil, []string{"bin/app", "public/js/a.js"}},
		{"one star takes directories whole", []string{"p*"}, []string{"**/*.map"}, []string{"bin/app", "public/index.html", "public/js/a.js"}},
		{"a symlink, and where it leads", []string{"current", "public"}, []string{"public/*.html"}, []string{"bin/app", "current", "public/js/a.js", "public/js/a.map"}},
		{"everything but", []string{"**"}, []string{"public/js", "current", ".*"}, []string{"bin/app", "notes.txt", "public/index.html"}},
		{"overlapping patterns", []string{"public/js", "public", "public/js/a.js"}, nil, []string{"bin/app", "public/index.html", "public/js/a.js", "public/js/a.map"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, dir, project)
			o := options(dir, c.files...)
			o.Exclude = c.exclude
			o.Spec.Run.Shared = []string{"data"}
			if got := paths(pack(t, o).Manifest); !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestPack_ModesAreOneOfTwo(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, map[string]string{"bin/app*": script, "a": "", "b": "", "c": "", "d": "->a"})
	for name, mode := range map[string]os.FileMode{"a": 0o600, "b": 0o710, "c": 0o444} {
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	got := map[string]uint32{}
	for _, f := range pack(t, options(dir, "**")).Manifest.Files {
		got[f.Path] = f.Mode
	}
	if want := map[string]uint32{"bin/app": 0o755, "a": 0o644, "b": 0o755, "c": 0o644, "d": 0}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestPack_ResolvesTheSpecAndLeavesTheCallersAlone(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, map[string]string{"bin/app*": script})
	o := options(dir)
	o.Spec.Listeners = []Listener{{Name: "s", Network: "unix", Address: "s.sock"}}
	o.Spec.Health = DefaultHealth()
	o.Spec.Health.Check = CheckTCP
	o.Spec.Drain.MaxAge = 0
	m := pack(t, o).Manifest
	if m.Spec.Listeners[0].Mode != "0660" || m.Spec.Health.Listener != "s" || m.Spec.Drain.MaxAge != 0 {
		t.Errorf("packed %+v, %+v", m.Spec, m.Spec.Health)
	}
	if o.Spec.Listeners[0].Mode != "" || o.Spec.Health.Listener != "" {
		t.Errorf("the caller's became %+v, %+v", o.Spec, o.Spec.Health)
	}
}

func TestPack_RefusesWhatNoHostCouldRun(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		other func(*PackOptions)
		want  string
	}{
		{"nothing listed", nil, func(o *PackOptions) { o.Files = nil }, "pack.files: is empty"},
		{"pattern without a match", nil, func(o *PackOptions) { o.Files = append(o.Files, "dist/**") }, `pack.files: "dist/**" matches no file in `},
		{"everything excluded", nil, func(o *PackOptions) { o.Exclude = []string{"bin"} }, `pack.files: "bin/app" matches no file`},
		{"shared", map[string]string{"data/x": ""}, func(o *PackOptions) { o.Files = append(o.Files, "data"); o.Spec.Run.Shared = []string{"data"} }, `"data" matches no file`},
		{"pattern that climbs", nil, func(o *PackOptions) { o.Files = append(o.Files, "../x") }, `pack.files: "../x" has ".." in it`},
		{"malformed exclude", nil, func(o *PackOptions) { o.Exclude = []string{"[a"} }, `pack.exclude: "[a" is malformed`},
		{"service", nil, func(o *PackOptions) { o.Service = "Chat" }, `service: "Chat": a service's name`},
		{"no version", nil, func(o *PackOptions) { o.Version = "" }, `version: is empty: give one with --version`},
		{"version", nil, func(o *PackOptions) { o.Version = "1/2" }, `version: "1/2": a version has`},
		{"spec", nil, func(o *PackOptions) { o.Spec.Ready.Timeout = 0 }, `ready.timeout: must be positive`},
		{"no directory", nil, func(o *PackOptions) { o.Dir += "/nope" }, `no such file or directory`},

		{"link that leaves", map[string]string{"l": "->../x"}, func(o *PackOptions) { o.Files = append(o.Files, "l") }, `"l": the symlink to "../x" leaves the release`},
		{"absolute link", map[string]string{"l": "->/etc/passwd"}, func(o *PackOptions) { o.Files = append(o.Files, "l") }, `"l": is absolute: it must be relative`},
		{"link to what is not packed", map[string]string{"l": "->x", "x": ""}, func(o *PackOptions) { o.Files = append(o.Files, "l") }, `leads to "x", which is not in the release`},
		{"through a linked directory", map[string]string{"l": "->bin"}, func(o *PackOptions) { o.Files = append(o.Files, "l/app") }, `"l/app" matches no file`},

		{"command missing", nil, func(o *PackOptions) { o.Spec.Run.Command[0] = "bin/nope" }, `run.command: "bin/nope": is not in the release: build it, and list it in pack.files`},
		{"command not executable", map[string]string{"x": script}, func(o *PackOptions) { o.Files = []string{"x"}; o.Spec.Run.Command[0] = "./x" }, `run.command: "./x": not executable: chmod +x and pack again`},
		{"built for darwin", map[string]string{"x*": "\xcf\xfa\xed\xfe\x07\x00\x00\x01"}, start("x"), `run.command: "./x" is built for darwin: build it with GOOS=linux`},
		{"built for windows", map[string]string{"x*": "MZ\x90\x00"}, start("x"), `is built for windows: build it with GOOS=linux`},
		{"built for freebsd", map[string]string{"x*": elfFile(elfSpec{abi: 9})}, start("x"), `is built for freebsd: build it with GOOS=linux`},
		{"a library", map[string]string{"x*": elfFile(elfSpec{typ: 3})}, start("x"), `is a library or an object file`},
		{"an unknown machine", map[string]string{"x*": elfFile(elfSpec{machine: 0xffff})}, start("x"), `a machine that hotdeploy does not know`},
		{"a cut ELF file", map[string]string{"x*": elfFile(elfSpec{})[:30]}, start("x"), `neither an ELF program nor a script`},
		{"text", map[string]string{"x*": "hello"}, start("x"), `neither an ELF program nor a script that begins with #!`},
		{"empty", map[string]string{"x*": ""}, start("x"), `neither an ELF program nor a script`},
		{"Windows line ends", map[string]string{"x*": "#!/bin/sh\r\n"}, start("x"), `has Windows line ends`},
		{"no interpreter", map[string]string{"x*": "#! \n"}, start("x"), `names no interpreter`},
		{"env with two words", map[string]string{"x*": "#!/usr/bin/env node --x\n"}, start("x"), `write #!/usr/bin/env -S`},
		{"relative interpreter that is not there", map[string]string{"x*": "#!bin/node\n"}, start("x"), `asks for the interpreter "bin/node", which leads to "bin", which is not in the release`},
		{"script of itself", map[string]string{"x*": "#!./x\n"}, start("x"), `the kernel gives up`},
		{"relative loader", map[string]string{"x*": elfFile(elfSpec{interp: "ld.so"})}, start("x"), `asks for the loader "ld.so", which is not absolute`},
		{"programs for two machines", map[string]string{"a*": elfFile(elfSpec{}), "b*": elfFile(elfSpec{machine: 183})}, func(o *PackOptions) { o.Files = append(o.Files, "a", "b") }, `pack: "a" is built for linux/amd64 and "b" for linux/arm64: exclude the one`},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, dir, map[string]string{"bin/app*": script})
			put(t, dir, c.files)
			o := options(dir)
			c.other(&o)
			_, err := Pack(context.Background(), o)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}

func start(name string) func(*PackOptions) {
	return func(o *PackOptions) { o.Files, o.Spec.Run.Command[0] = []string{name}, "./"+name }
}

func TestPack_RefusesSocketsAndPipesWithoutHanging(t *testing.T) {
	dir, err := os.MkdirTemp("", "hd") // short: a socket's path has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	put(t, dir, map[string]string{"bin/app*": script})
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := syscall.Mkfifo(filepath.Join(dir, "p"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"s": "is a socket", "p": "is a named pipe", "*": ", which no release can hold: exclude it"} {
		if _, err := Pack(context.Background(), options(dir, name)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", name, err, want)
		}
	}
	o := options(dir, "*")
	o.Exclude = []string{"s", "p"}
	pack(t, o)
}

func TestPack_EndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, map[string]string{"bin/app*": script})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Pack(ctx, options(dir)); err != context.Canceled {
		t.Errorf("got %v", err)
	}
}

func TestPack_DirtyVersionsTellTheirContent(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, map[string]string{"bin/app*": script, "a": "1"})
	o := options(dir, "a")
	o.Version = "1.0-dirty"
	first, same := pack(t, o), pack(t, o)
	put(t, dir, map[string]string{"a": "2"})
	second := pack(t, o)
	v := first.Manifest.Version
	if !strings.HasPrefix(v, "1.0-dirty.") || len(v) != len("1.0-dirty.")+8 {
		t.Errorf("version %s", v)
	}
	if same.Manifest.Version != v || same.Digest != first.Digest {
		t.Errorf("the same content became %s and %s", v, same.Manifest.Version)
	}
	if second.Manifest.Version == v {
		t.Errorf("other content is %s too", v)
	}
}

func TestPacked_OpenGivesTheContent(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, map[string]string{"bin/app*": script, "a": "x", "b": "x", "c": "y"})
	p := pack(t, options(dir, "a", "b", "c"))
	f, err := p.Open(Digest([]byte("x")))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if b, err := io.ReadAll(f); err != nil || string(b) != "x" {
		t.Errorf("got %q, %v", b, err)
	}
	if _, err := p.Open(Digest([]byte("z"))); err == nil || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is not in it: got %v", err)
	}
	put(t, dir, map[string]string{"c": "longer"})
	if _, err := p.Open(Digest([]byte("y"))); err == nil || !strings.Contains(err.Error(), `"c": changed since it was packed: pack again`) {
		t.Errorf("what changed: got %v", err)
	}
}
