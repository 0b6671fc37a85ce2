package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// errWrong is content that is not what was asked for.
var errWrong = errors.New("wrong content")

// copyStep is how much is copied between two looks at the context.
const copyStep = 32 << 20

// A file gets into the release that is being built in one of two ways. A link costs nothing and is taken where the source
// is a file of ours, which nobody else can change. Everything else is copied. In both cases what is hashed is what
// lies in the release afterwards.

// link makes dst in tree another name of the open file f. It fails where file systems or rules forbid it; a copy always works.
func link(f *os.File, tree *os.Root, dst string) error {
	dir, err := tree.Open(path.Dir(dst))
	if err != nil {
		return err
	}
	defer dir.Close()
	return onFD(f, func(from int) error {
		return onFD(dir, func(to int) error {
			// By way of the descriptor: a name could have been given to another file since it was opened.
			return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", from), to, path.Base(dst), unix.AT_SYMLINK_FOLLOW)
		})
	})
}

// copyFile writes at most size bytes of src to the new file dst and checks them. [errWrong]: they are other bytes, or more or
// fewer. Where the file system can, the copy shares its blocks with src.
func copyFile(ctx context.Context, src *os.File, tree *os.Root, dst string, f *release.File) (err error) {
	out, err := tree.OpenFile(dst, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, out.Close()); err != nil {
			tree.Remove(dst)
		}
	}()
	if err := copyBytes(ctx, out, src, f.Size+1); err != nil { // one more, to notice a source that is longer
		return err
	}
	ok, err := hasContent(ctx, out, f.Size, f.SHA256)
	if err == nil && !ok {
		err = errWrong
	}
	return errors.Join(err, out.Chmod(finalMode(f)))
}

func copyBytes(ctx context.Context, dst, src *os.File, most int64) error {
	if _, err := src.Seek(0, io.SeekStart); err != nil {
		return err
	}
	for most > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := io.CopyN(dst, src, min(most, copyStep))
		most -= n
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// linkChecked links src to dst if it has the right content, and gives it its final mode. done is false where it cannot be
// linked; nothing is there then.
func linkChecked(ctx context.Context, src *os.File, tree *os.Root, dst string, f *release.File) (done bool, err error) {
	ok, err := hasContent(ctx, src, f.Size, f.SHA256)
	if err != nil {
		return false, err
	}
	if !ok {
		return false, errWrong
	}
	if link(src, tree, dst) != nil {
		return false, nil
	}
	return true, src.Chmod(finalMode(f))
}

// isPrivate tells whether only this user can change a file, by this name and no other.
func isPrivate(fi fs.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && isOurs(fi) && st.Nlink == 1 && st.Mode&0o022 == 0
}
