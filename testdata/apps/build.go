package apps

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

const module = "github.com/hotdeploy/hotdeploy/testdata/apps/"

// Build returns the path of the Go app name ("wsecho") for goos and goarch
// (empty: those of this machine). The file is the test's own, in its TempDir.
func Build(t testing.TB, name, goos, goarch string) string {
	t.Helper()
	return BuildMarked(t, name, goos, goarch, "")
}

// BuildMarked is Build with mark linked into the binary: another mark, other
// bytes. The app tells its mark in the header X-Build-Mark.
func BuildMarked(t testing.TB, name, goos, goarch, mark string) string {
	t.Helper()
	b := build{name: name, goos: goos, goarch: goarch, mark: mark}
	shared, err := b.once(t.Context())
	if err != nil {
		t.Fatalf("building %s: %v", name, err)
	}
	own := filepath.Join(t.TempDir(), name)
	if err := copyFile(t.Context(), shared, own); err != nil {
		t.Fatalf("building %s: %v", name, err)
	}
	return own
}

// BuildFailing is Build with the failpoints of package upgrade compiled in: the
// variable UPGRADE_FAILPOINT says which one strikes.
func BuildFailing(t testing.TB, name string) string {
	t.Helper()
	b := build{name: name, mark: "failpoints", tags: "failpoints"}
	shared, err := b.once(t.Context())
	if err != nil {
		t.Fatalf("building %s: %v", name, err)
	}
	return shared
}

// build is one configuration of one app.
type build struct{ name, goos, goarch, mark, tags string }

type result struct {
	sync.Mutex // held while building
	path       string
}

var (
	resultsMu sync.Mutex // protects results; never held while building
	results   = map[build]*result{}
)

// once builds b the first time; a failure is tried again by the next caller.
func (b build) once(ctx context.Context) (string, error) {
	resultsMu.Lock()
	r := results[b]
	if r == nil {
		r = &result{}
		results[b] = r
	}
	resultsMu.Unlock()

	r.Lock()
	defer r.Unlock()
	if r.path != "" {
		return r.path, nil
	}
	path, err := b.run(ctx)
	if err == nil {
		r.path = path
	}
	return path, err
}

// run builds into a directory that all test binaries of this user share. The
// go command leaves an output that is up to date alone, so only the first of
// them pays for the linking.
func (b build) run(ctx context.Context) (string, error) {
	dir, err := b.dir()
	if err != nil {
		return "", err
	}
	unlock, err := lock(filepath.Join(dir, "lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	out := filepath.Join(dir, b.name)
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-trimpath", "-tags", b.tags,
		"-ldflags", "-X main.buildMark="+b.mark, "-o", out, module+b.name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if b.goos != "" {
		cmd.Env = append(cmd.Env, "GOOS="+b.goos)
	}
	if b.goarch != "" {
		cmd.Env = append(cmd.Env, "GOARCH="+b.goarch)
	}
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, text)
	}
	return out, nil
}

// dir is one directory per configuration, private to the user.
func (b build) dir() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil { // no HOME, as in some containers
		cache = filepath.Join(os.TempDir(), fmt.Sprintf("cache-%d", os.Getuid()))
	}
	_, here, _, _ := runtime.Caller(0) // another copy of the sources has a directory of its own
	sum := sha256.Sum256([]byte(b.goos + "\x00" + b.goarch + "\x00" + b.mark + "\x00" + here))
	dir := filepath.Join(cache, "hotdeploy-apps", b.name+"-"+hex.EncodeToString(sum[:8]))
	return dir, os.MkdirAll(dir, 0o700)
}

// lock waits for the file lock that keeps two test binaries from building into
// one directory. The kernel gives it up when the holder dies.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// copyFile lets cp write: had this process the new file open for writing, a
// child that another test forks at that moment would hold it open as well, and
// starting the copy would fail with "text file busy".
func copyFile(ctx context.Context, from, to string) error {
	if text, err := exec.CommandContext(ctx, "cp", "--reflink=auto", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("cp: %w: %s", err, text)
	}
	return nil
}
