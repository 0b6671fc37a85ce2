package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/failpoint"
)

// errNotRegular is something else where a regular file or a directory should be: a symlink, a pipe.
var errNotRegular = errors.New("not a regular file, or it changed while it was opened")

// openDir opens a directory below root for use as a root itself, never through a symlink at its last element. The caller
// closes it.
func openDir(root *os.Root, name string) (*os.Root, error) {
	seen, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !seen.IsDir() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: unix.ENOTDIR}
	}
	dir, err := root.OpenRoot(name + "/.") // as a directory: a pipe that took its place would make us wait
	if err != nil {
		return nil, err
	}
	if got, err := dir.Stat("."); err != nil || !os.SameFile(seen, got) {
		dir.Close()
		return nil, &fs.PathError{Op: "open", Path: name, Err: unix.ENOTDIR}
	}
	return dir, nil
}

// openRegular opens a regular file for reading, never through a symlink at its last element and without waiting for the
// other end of a pipe. The caller closes it.
func openRegular(root *os.Root, name string) (*os.File, fs.FileInfo, error) {
	seen, err := root.Lstat(name)
	if err != nil {
		return nil, nil, err
	}
	if !seen.Mode().IsRegular() {
		return nil, nil, &fs.PathError{Op: "open", Path: name, Err: errNotRegular}
	}
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, notRegular(name, err)
	}
	got, err := f.Stat()
	if err == nil && !os.SameFile(seen, got) {
		err = &fs.PathError{Op: "open", Path: name, Err: errNotRegular}
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, got, nil
}

// notRegular tells what a file that was regular an instant ago has become, from the error of opening it: a symlink (what
// [os.Root] says of one that leads out is no errno) or a socket.
func notRegular(name string, err error) error {
	var errno unix.Errno
	if !errors.As(err, &errno) || errno == unix.ELOOP || errno == unix.ENOTDIR || errno == unix.ENXIO {
		return &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("%w: %v", errNotRegular, reason(err))}
	}
	return err
}

// readLimited reads a regular file of at most limit bytes.
func readLimited(root *os.Root, name string, limit int64) ([]byte, error) {
	f, _, err := openRegular(root, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("larger than %d bytes", limit)}
	}
	return b, nil
}

// writeFile replaces a file at once: whoever reads it, also after a power cut, finds all of the old or all of the new.
func writeFile(root *os.Root, name string, data []byte, mode os.FileMode) (err error) {
	dir := path.Dir(name)
	temp := path.Join(dir, tempName())
	f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			root.Remove(temp)
		}
	}()
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	step("write " + path.Base(name))
	if err := root.Rename(temp, name); err != nil {
		return err
	}
	step("written " + path.Base(name))
	return syncPath(root, dir)
}

// syncPath makes a file's content, or what was created, renamed and removed in a directory, last through a power cut.
func syncPath(root *os.Root, name string) error {
	d, err := root.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// makeDir makes a directory with exactly that mode, whatever the umask. Only the setgid bit may be missing: see below.
func makeDir(root *os.Root, name string, mode os.FileMode) error {
	if err := root.Mkdir(name, mode.Perm()); err != nil {
		return err
	}
	if is, err := hasMode(root, name, mode); is || err != nil {
		return err
	}
	err := root.Chmod(name, mode)
	if mode&os.ModeSetgid == 0 || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	// A sandbox may forbid to set the bit (RestrictSUIDSGID=). Then it is inherited from the directory above where set-up gave it
	// to that one; but a chmod without it, to correct what the umask took, would take it away.
	if err := root.Remove(name); err != nil {
		return err
	}
	return mkdirWithoutUmask(root, name, mode.Perm())
}

func hasMode(root *os.Root, name string, mode os.FileMode) (bool, error) {
	const bits = os.ModeSetgid | os.ModePerm
	fi, err := root.Lstat(name)
	return err == nil && fi.Mode()&bits == mode&bits, err
}

// mkdirWithoutUmask leaves the umask of all other threads, and so of what they start, as it is.
func mkdirWithoutUmask(root *os.Root, name string, perm os.FileMode) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread and its umask end with this goroutine
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			result <- &fs.PathError{Op: "unshare umask", Path: name, Err: err}
			return
		}
		unix.Umask(0)
		result <- root.Mkdir(name, perm)
	}()
	return <-result
}

// entries yields what is in a directory, without ever having all of it in memory.
func entries(root *os.Root, name string) iter.Seq2[fs.DirEntry, error] {
	return func(yield func(fs.DirEntry, error) bool) {
		d, err := root.Open(name)
		if err != nil {
			yield(nil, err)
			return
		}
		defer d.Close()
		for {
			list, err := d.ReadDir(512)
			for _, e := range list {
				if !yield(e, nil) {
					return
				}
			}
			if err == io.EOF {
				return
			}
			if err != nil {
				yield(nil, err)
				return
			}
		}
	}
}

// forceRemove removes a tree, also one with read-only directories.
func forceRemove(root *os.Root, name string) error {
	if err := root.RemoveAll(name); err == nil {
		return nil
	}
	makeWritable(root, name)
	return root.RemoveAll(name)
}

// makeWritable does what it can; the removal after it tells what it could not.
func makeWritable(root *os.Root, name string) {
	fi, err := root.Lstat(name)
	if err != nil || !fi.IsDir() {
		return
	}
	if root.Chmod(name, 0o700) != nil {
		return
	}
	dir, err := openDir(root, name)
	if err != nil {
		return
	}
	defer dir.Close()
	for e, err := range entries(dir, ".") {
		if err == nil && e.IsDir() {
			makeWritable(dir, e.Name())
		}
	}
}

// onFD calls fn with f's descriptor, which stays open and as it is meanwhile.
func onFD(f *os.File, fn func(fd int) error) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var res error
	if err := c.Control(func(fd uintptr) { res = fn(int(fd)) }); err != nil {
		return err
	}
	return res
}

// step marks an instruction after which tests kill the process.
var step = failpoint.At
