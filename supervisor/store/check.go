package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

var buffers = sync.Pool{New: func() any { return new([256 << 10]byte) }}

// digestOf reads a file from its beginning.
func digestOf(ctx context.Context, f io.ReaderAt, size int64) (string, error) {
	buf := buffers.Get().(*[256 << 10]byte)
	defer buffers.Put(buf)
	h := sha256.New()
	r := io.NewSectionReader(f, 0, size)
	for {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		n, err := r.Read(buf[:])
		h.Write(buf[:n])
		if err == io.EOF {
			return hex.EncodeToString(h.Sum(nil)), nil
		}
		if err != nil {
			return "", err
		}
	}
}

// hasContent tells whether f is of that size and digest.
func hasContent(ctx context.Context, f *os.File, size int64, digest string) (bool, error) {
	fi, err := f.Stat()
	if err != nil || fi.Size() != size {
		return false, err
	}
	got, err := digestOf(ctx, f, size)
	return got == digest, err
}

// checkTree reads all files of a release and lists those that are not as m says, with the reason. Unlike [release.Verify] it
// lets be what lies there besides them: a cache that an app running as root wrote beside its code must not stand in the
// way of a rollback.
func checkTree(ctx context.Context, files *os.Root, m *release.Manifest) ([]string, error) {
	var mu sync.Mutex // guards bad
	var bad []string
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(workers)
	for i := range m.Files {
		group.Go(func() error {
			why, err := checkFile(ctx, files, &m.Files[i])
			if why != "" {
				mu.Lock()
				bad = append(bad, release.Shown(m.Files[i].Path)+" ("+why+")")
				mu.Unlock()
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for _, p := range m.Spec.Run.Shared {
		if why := checkLink(files, p, release.SharedLink(p)); why != "" {
			bad = append(bad, p+" ("+why+")")
		}
	}
	slices.Sort(bad)
	return bad, nil
}

// checkFile says what is wrong with a file. An error is about this machine: it could not be found out.
func checkFile(ctx context.Context, files *os.Root, f *release.File) (why string, err error) {
	if f.Link != "" {
		return checkLink(files, f.Path, f.Link), nil
	}
	h, fi, err := openRegular(files, f.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "missing", nil
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM):
		return "", err
	case err != nil: // no file of a release of ours: not regular, not readable, led out of the release
		return reason(err), nil
	}
	defer h.Close()
	if fi.Mode().Perm()&0o111 != finalMode(f)&0o111 {
		return fmt.Sprintf("mode %#o", fi.Mode().Perm()), nil
	}
	ok, err := hasContent(ctx, h, f.Size, f.SHA256)
	if err == nil && !ok {
		why = "other content"
	}
	return why, err
}

// reason is err without the path, which is told elsewhere.
func reason(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	return err.Error()
}

func checkLink(files *os.Root, name, want string) string {
	switch target, err := files.Readlink(name); {
	case err != nil:
		return "no symlink"
	case target != want:
		return "leads elsewhere"
	}
	return ""
}
