package release

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sync/errgroup"
)

// hashers is how many files are read at once: enough to keep a disk and the processors busy, few enough to bound memory.
func hashers() int { return max(2, min(8, runtime.GOMAXPROCS(0))) }

var buffers = sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }}

// errChanged is a file that is not what it was when we first looked.
var errChanged = errors.New("changed while it was read")

// content is what Pack learns of one regular file while it has it open.
type content struct {
	sha256 string
	size   int64
	program
}

// openSame opens the regular file p, which Lstat described as info. The open neither hangs on a pipe nor takes another file
// that came to that name since.
func openSame(root *os.Root, p string, info fs.FileInfo) (*os.File, error) {
	f, err := root.OpenFile(p, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	now, err := f.Stat()
	if err == nil && !os.SameFile(info, now) {
		err = errChanged
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// hash reads exactly size bytes of r, into w as well if it is not nil.
func hash(ctx context.Context, r io.Reader, w io.Writer, size int64) (string, error) {
	h := sha256.New()
	to := io.Writer(h)
	if w != nil {
		to = io.MultiWriter(h, w)
	}
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	n, err := io.CopyBuffer(onlyWriter{to}, contextReader{ctx, io.LimitReader(r, size+1)}, *b)
	if err == nil && n != size {
		err = errChanged
	}
	return hex.EncodeToString(h.Sum(nil)), err
}

// onlyWriter hides ReadFrom, which would pass our buffer by.
type onlyWriter struct{ io.Writer }

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}

// readContents reads all regular files, several at a time. The result has an entry for each of list, nil for a symlink.
func readContents(ctx context.Context, root *os.Root, list []found) ([]*content, error) {
	out := make([]*content, len(list))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(hashers())
	for i, f := range list {
		if f.link != "" {
			continue
		}
		g.Go(func() (err error) {
			if out[i], err = readContent(ctx, root, f); err != nil {
				return fmt.Errorf("pack %s: %w", quote(f.path), err)
			}
			return nil
		})
	}
	return out, g.Wait()
}

func readContent(ctx context.Context, root *os.Root, f found) (*content, error) {
	r, err := openSame(root, f.path, f.info)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	c := &content{size: f.info.Size(), program: readProgram(r)}
	c.sha256, err = hash(ctx, r, nil, c.size)
	return c, err
}
