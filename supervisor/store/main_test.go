package store

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// children are what the test binary does when it is started as a child: see runChild.
var children = map[string]func(args []string) error{}

const (
	childVar     = "STORE_TEST_CHILD"     // which of the children to be
	failpointVar = "STORE_TEST_FAILPOINT" // "name" or "name:3": be killed there, the third time
)

func TestMain(m *testing.M) {
	name := os.Getenv(childVar)
	if name == "" {
		os.Exit(m.Run())
	}
	armFailpoint()
	if err := children[name](os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func armFailpoint() {
	name, count, _ := strings.Cut(os.Getenv(failpointVar), ":")
	left, err := strconv.Atoi(count)
	if err != nil {
		left = 1
	}
	if name == "" {
		return
	}
	turn := make(chan int, 1)
	turn <- left
	step = func(at string) {
		if at != name {
			return
		}
		n := <-turn - 1
		if n <= 0 {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		turn <- n
	}
}

// childCommand is this test binary as a child.
func childCommand(t *testing.T, name, failpoint string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, args...)
	cmd.Env = append(os.Environ(), childVar+"="+name, failpointVar+"="+failpoint)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// cannot skips a test loudly, or fails it where nothing may be skipped.
func cannot(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("CI must not skip this: "+format, args...)
	}
	t.Skipf("SKIPPED: "+format, args...)
}

// open opens a store for one test. At its end nothing of unfinished work may lie about and no descriptor may be left.
func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir, "chat")
	if err != nil {
		t.Fatal(err)
	}
	s.Warn = func(err error) { t.Log("warning:", err) }
	closed := false
	t.Cleanup(func() {
		if !closed {
			s.Close()
		}
		audit(t, s.Dir())
		makeAllWritable(s.Dir())
	})
	return s
}

func audit(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && isTemp(d.Name()) {
			t.Errorf("left behind: %s", p)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	fds, _ := filepath.Glob("/proc/self/fd/*")
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && (to == dir || strings.HasPrefix(to, dir+"/")) {
			t.Errorf("descriptor %s of %s was not closed", filepath.Base(fd), to)
		}
	}
}

// makeAllWritable lets t.TempDir be removed by somebody who is not root.
func makeAllWritable(dir string) {
	filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			os.Chmod(p, 0o755)
		}
		return nil
	})
}

// app is a release for tests: path to content. A content that begins with "->" is a symlink, a path that ends in * is
// executable.
type app struct {
	version string
	files   map[string]string
	edit    func(m *release.Manifest)
}

func (a app) manifest(t testing.TB) (*release.Manifest, []byte, string) {
	t.Helper()
	m := &release.Manifest{Format: release.Format, Service: "chat", Version: a.version}
	m.Spec.Run.Command = []string{"./run"}
	m.Spec.SetDefaults()
	m.Files = append(m.Files, release.File{Path: "run", Mode: 0o755, Size: int64(len(runScript)), SHA256: release.Digest([]byte(runScript))})
	for p, content := range a.files {
		m.Files = append(m.Files, fileOf(p, content))
	}
	slices.SortFunc(m.Files, func(a, b release.File) int { return strings.Compare(a.Path, b.Path) })
	if a.edit != nil {
		a.edit(m)
	}
	raw, err := release.Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	return m, raw, release.Digest(raw)
}

const runScript = "#!/bin/sh\nexec sleep 1000\n"

func fileOf(p, content string) release.File {
	if link, ok := strings.CutPrefix(content, "->"); ok {
		return release.File{Path: p, Link: link}
	}
	name, executable := strings.CutSuffix(p, "*")
	f := release.File{Path: name, Mode: 0o644, Size: int64(len(content)), SHA256: release.Digest([]byte(content))}
	if executable {
		f.Mode = 0o755
	}
	return f
}

// contents is what the release consists of, by digest.
func (a app) contents() map[string]string {
	all := map[string]string{release.Digest([]byte(runScript)): runScript}
	for p, c := range a.files {
		if f := fileOf(p, c); f.Link == "" {
			all[f.SHA256] = c
		}
	}
	return all
}

var here = Facts{OS: "linux", Arch: "amd64", Env: []string{"PATH=/usr/bin:/bin"}}

// plan asks for an upload and returns what is missing by digest.
func plan(t testing.TB, s *Store, a app) (missing map[string]int64, digest string) {
	t.Helper()
	_, raw, _ := a.manifest(t)
	p, err := s.Plan(t.Context(), raw, here)
	if err != nil {
		t.Fatal(err)
	}
	missing = map[string]int64{}
	for _, b := range p.Missing {
		missing[b.SHA256] = b.Offset
	}
	return missing, p.Digest
}

// send does what an uploader does: it plans and writes what is missing where it was told to.
func send(t testing.TB, s *Store, a app) (digest string) {
	t.Helper()
	_, raw, _ := a.manifest(t)
	p, err := s.Plan(t.Context(), raw, here)
	if err != nil {
		t.Fatal(err)
	}
	all := a.contents()
	for _, b := range p.Missing {
		f, err := os.OpenFile(filepath.Join(p.Dir, b.SHA256), os.O_WRONLY|os.O_CREATE, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte(all[b.SHA256][b.Offset:]), b.Offset); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return p.Digest
}

// push sends a release and completes it.
func push(t testing.TB, s *Store, a app) *Release {
	t.Helper()
	info, err := s.Complete(context.Background(), send(t, s, a))
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Release(info.Version)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func part(s *Store, digest, content string) string {
	return filepath.Join(s.Dir(), "incoming", digest, "parts", release.Digest([]byte(content)))
}

func write(t testing.TB, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// whole checks that a release is complete on the disk, in every byte.
func whole(t testing.TB, s *Store, version string) *Release {
	t.Helper()
	r, err := s.Release(version)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	return r
}

// childT lets a child use the helpers for tests: what would fail a test ends it.
type childT struct{ testing.TB }

func (childT) Helper()                  {}
func (childT) Context() context.Context { return context.Background() }
func (childT) Fatal(args ...any)        { fmt.Fprintln(os.Stderr, args...); os.Exit(1) }
