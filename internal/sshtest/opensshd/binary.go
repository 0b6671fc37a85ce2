package opensshd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// binaries are where sshd and its file server are, and the directory of the
// libraries that came along.
type binaries struct {
	sshd, sftp, libs string
}

const fetchTimeout = 3 * time.Minute

var find = sync.OnceValues(func() (binaries, error) {
	if b, err := installed(); err == nil {
		return b, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	return fetched(ctx)
})

func installed() (binaries, error) {
	sshd, err := lookIn("sshd", "/usr/sbin", "/usr/local/sbin", "/sbin")
	if err != nil {
		return binaries{}, err
	}
	sftp, err := lookIn("sftp-server", "/usr/lib/openssh", "/usr/libexec/openssh", "/usr/lib/ssh", "/usr/libexec")
	return binaries{sshd: sshd, sftp: sftp}, err
}

func lookIn(name string, dirs ...string) (string, error) {
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("no %s in %s", name, strings.Join(dirs, ", "))
}

var packages = []string{"openssh-server", "openssh-sftp-server", "libwrap0"}

// fetched unpacks the Debian packages into the cache, once for all tests.
func fetched(ctx context.Context) (binaries, error) {
	if os.Getuid() != 0 {
		return binaries{}, errors.New("no sshd is installed, and only root could fetch it (Debian: openssh-server)")
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return binaries{}, errors.New("no sshd is installed, and there is no apt-get to fetch it")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = "/var/cache"
	}
	dir := filepath.Join(cache, "hotdeploy-test", "openssh")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return binaries{}, err
	}
	unlock, err := lock(dir)
	if err != nil {
		return binaries{}, err
	}
	defer unlock()
	root := filepath.Join(dir, "root")
	if b, err := unpacked(root); err == nil {
		return b, nil
	}
	if err := fetch(ctx, dir, root); err != nil {
		return binaries{}, err
	}
	return unpacked(root)
}

// lock keeps the tests of other packages out while we fetch.
func lock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { f.Close() }, nil
}

func unpacked(root string) (binaries, error) {
	sshd, err := lookIn("sshd", filepath.Join(root, "usr/sbin"))
	if err != nil {
		return binaries{}, err
	}
	sftp, err := lookIn("sftp-server", filepath.Join(root, "usr/lib/openssh"))
	if err != nil {
		return binaries{}, err
	}
	libs, err := filepath.Glob(filepath.Join(root, "usr/lib/*/libwrap.so.0"))
	if err != nil || len(libs) == 0 {
		return binaries{}, fmt.Errorf("no libwrap in %s", root)
	}
	return binaries{sshd: sshd, sftp: sftp, libs: filepath.Dir(libs[0])}, nil
}

func fetch(ctx context.Context, dir, root string) error {
	debs := filepath.Join(dir, "debs")
	if err := os.MkdirAll(debs, 0o755); err != nil {
		return err
	}
	download := append([]string{"-qq", "download"}, packages...)
	if err := run(ctx, debs, "apt-get", download...); err != nil {
		// the lists may be missing, or older than the mirror
		if err := run(ctx, debs, "apt-get", "-qq", "update"); err != nil {
			return err
		}
		if err := run(ctx, debs, "apt-get", download...); err != nil {
			return err
		}
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	half := root + ".half" // so that an interrupted unpacking is not taken for a whole one
	if err := os.RemoveAll(half); err != nil {
		return err
	}
	for _, deb := range files {
		if err := run(ctx, debs, "dpkg", "-x", deb, half); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(root); err != nil {
		return err
	}
	return os.Rename(half, root)
}

func run(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
