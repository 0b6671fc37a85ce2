package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
)

// ErrDamaged is a release directory that is not what its manifest says.
var ErrDamaged = errors.New("the release is damaged")

// DamagedError names the first path, in alphabetical order, that is not what the manifest says.
type DamagedError struct {
	Path    string // relative to files/
	Problem string
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("%v: %s %s", ErrDamaged, quote(e.Path), e.Problem)
}

func (e *DamagedError) Unwrap() error { return ErrDamaged }

// Verify compares the directory files (the one named [FilesDir] in a release) with m: type, size, mode, symlink target and
// digest of every file, and that nothing else is there. It follows no symlink. Files may be more closed than m
// says (read-only, not for others), never more open. At a shared path there may be a symlink, see [SharedLink].
//
// What differs is a [DamagedError]; what cannot be read, or an ended context, is not.
func Verify(ctx context.Context, files *os.Root, m *Manifest) error {
	if err := survey(ctx, files, m); err != nil {
		return err
	}
	var bad firstBad
	g, groupCtx := errgroup.WithContext(ctx)
	g.SetLimit(hashers())
	for i := range m.Files {
		f := &m.Files[i]
		if f.Link != "" {
			continue
		}
		if bad.get() != nil || groupCtx.Err() != nil {
			break // all before it are under way, so that the first one wins
		}
		g.Go(func() error { return verifyContent(groupCtx, files, f, &bad) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := bad.get(); err != nil {
		return err
	}
	return ctx.Err()
}

func verifyContent(ctx context.Context, files *os.Root, f *File, bad *firstBad) error {
	r, err := openFile(files, f)
	if errors.Is(err, fs.ErrNotExist) {
		bad.add(f.Path, "is missing")
		return nil
	}
	if err != nil {
		return fmt.Errorf("verify %s: %w", quote(f.Path), err)
	}
	defer r.Close()
	sum, err := hash(ctx, r, nil, f.Size)
	if err != nil {
		return fmt.Errorf("verify %s: %w", quote(f.Path), err)
	}
	if sum != f.SHA256 {
		bad.add(f.Path, "has other content: SHA-256 "+sum+" instead of "+f.SHA256)
	}
	return nil
}

// SharedLink is the target of the symlink that stands in a release's files for the shared path p: relative, from
// releases/<version>/files/ to shared/.
func SharedLink(p string) string {
	return strings.Repeat("../", strings.Count(p, "/")) + "../../../shared/" + p
}

// firstBad keeps the alphabetically first problem, so that what is told does not depend on who was faster.
type firstBad struct {
	mu  sync.Mutex // protects err
	err *DamagedError
}

func (b *firstBad) add(p, problem string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil || p < b.err.Path {
		b.err = &DamagedError{p, problem}
	}
}

func (b *firstBad) get() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		return nil
	}
	return b.err
}

// surveyor compares everything but the contents.
type surveyor struct {
	ctx   context.Context
	files *os.Root
	tree  *tree
	seen  map[string]bool
	bad   firstBad
}

func survey(ctx context.Context, files *os.Root, m *Manifest) error {
	s := surveyor{ctx: ctx, files: files, tree: newTree(m.Files, m.Spec.Run.Shared), seen: make(map[string]bool, len(m.Files))}
	if err := s.walk(""); err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	for p := range s.tree.files {
		if !s.seen[p] {
			s.bad.add(p, "is missing")
		}
	}
	return s.bad.get()
}

func (s *surveyor) walk(dir string) error {
	d, err := s.files.Open(path.Join(".", dir))
	if err != nil {
		return err
	}
	defer d.Close()
	for {
		// In portions: how many entries a damaged directory has is not for us to say.
		names, err := d.Readdirnames(1024)
		for _, name := range names {
			if err := s.entry(path.Join(dir, name)); err != nil {
				return err
			}
		}
		if len(names) == 0 || err != nil {
			return endOfDir(err)
		}
		if err := s.ctx.Err(); err != nil {
			return err
		}
	}
}

func (s *surveyor) entry(p string) error {
	info, err := s.files.Lstat(p)
	if err != nil {
		return err
	}
	f := s.tree.files[p]
	switch {
	case f != nil:
		s.seen[p] = true
		return s.compare(f, info)
	case s.tree.shared[p]:
		return s.compareShared(p, info)
	case !s.tree.isDir(p):
		s.bad.add(p, "is not in the manifest")
	case !info.IsDir():
		s.bad.add(p, "is a "+kind(info.Mode())+" instead of a directory")
	default:
		return s.walk(p)
	}
	return nil
}

func (s *surveyor) compare(f *File, info fs.FileInfo) error {
	if f.Link != "" {
		return s.compareLink(f, info)
	}
	mode := info.Mode()
	switch {
	case !mode.IsRegular():
		s.bad.add(f.Path, "is a "+kind(mode)+" instead of a regular file")
	case info.Size() != f.Size:
		s.bad.add(f.Path, fmt.Sprintf("has %d bytes instead of %d", info.Size(), f.Size))
	case !modeFits(mode, fs.FileMode(f.Mode)):
		s.bad.add(f.Path, fmt.Sprintf("has mode %v instead of %v", mode, fs.FileMode(f.Mode)))
	}
	return nil
}

// modeFits allows a mode that is more closed than wanted, as long as the owner can use the file.
func modeFits(have, want fs.FileMode) bool {
	special := have & (fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
	need := want & 0o500
	return special == 0 && have.Perm()&^want == 0 && have.Perm()&need == need
}

func (s *surveyor) compareLink(f *File, info fs.FileInfo) error {
	if info.Mode()&fs.ModeSymlink == 0 {
		s.bad.add(f.Path, "is a "+kind(info.Mode())+" instead of a symlink")
		return nil
	}
	target, err := s.files.Readlink(f.Path)
	if err == nil && target != f.Link {
		s.bad.add(f.Path, "leads to "+quote(target)+" instead of "+quote(f.Link))
	}
	return err
}

func (s *surveyor) compareShared(p string, info fs.FileInfo) error {
	if info.Mode()&fs.ModeSymlink == 0 {
		s.bad.add(p, "is a "+kind(info.Mode())+" instead of the symlink to the shared path")
		return nil
	}
	target, err := s.files.Readlink(p)
	if err == nil && !strings.HasSuffix(target, "/shared/"+p) {
		s.bad.add(p, "leads to "+quote(target)+" instead of "+quote(SharedLink(p)))
	}
	return err
}

func endOfDir(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}
