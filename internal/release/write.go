package release

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sync/errgroup"
)

// WriteTo writes the release as the new directory dir: manifest.json and files/. It appears complete or not at all. If dir
// is this release already, nothing is done; if it is anything else, that is an error. Files are read-only (0444, 0555);
// directories are not, so that an ordinary rm -r removes it.
func (p *Packed) WriteTo(ctx context.Context, dir string) (err error) {
	dir = filepath.Clean(dir)
	if _, err := os.Lstat(dir); err == nil {
		return p.sameAs(dir)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", dir, err)
	}
	defer func() {
		if err != nil {
			os.RemoveAll(tmp)
			err = fmt.Errorf("write %s: %w", dir, err)
		}
	}()
	if err := p.fill(ctx, tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

func (p *Packed) sameAs(dir string) error {
	m, err := ReadManifest(dir)
	if err != nil {
		return fmt.Errorf("write %s: something else is there: %w", dir, errors.Join(fs.ErrExist, err))
	}
	b, err := Encode(m)
	if err != nil {
		return err
	}
	if Digest(b) != p.Digest {
		return fmt.Errorf("write %s: another release is there: %w", dir, fs.ErrExist)
	}
	return nil
}

// fill writes everything into the new directory dir and syncs it.
func (p *Packed) fill(ctx context.Context, dir string) error {
	to, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer to.Close()
	if err := to.Mkdir(FilesDir, 0o755); err != nil {
		return err
	}
	dirs, err := p.makeDirs(to)
	if err != nil {
		return err
	}
	if err := p.copyFiles(ctx, to); err != nil {
		return err
	}
	if err := writeNew(to, ManifestName, 0o444, func(f *os.File) error { _, err := f.Write(p.Bytes); return err }); err != nil {
		return err
	}
	return finishDirs(to, dirs)
}

// makeDirs makes the directories that the files imply and returns them, each after the one it is in.
func (p *Packed) makeDirs(to *os.Root) ([]string, error) {
	dirs := []string{".", FilesDir}
	made := make(map[string]bool)
	var mk func(d string) error
	mk = func(d string) error {
		if d == "" || made[d] {
			return nil
		}
		if err := mk(parent(d)); err != nil {
			return err
		}
		made[d] = true
		dirs = append(dirs, path.Join(FilesDir, d))
		return to.Mkdir(path.Join(FilesDir, d), 0o755)
	}
	for i := range p.Manifest.Files {
		if err := mk(parent(p.Manifest.Files[i].Path)); err != nil {
			return nil, err
		}
	}
	return dirs, nil
}

// finishDirs gives the directories their mode whatever the umask is, and syncs them.
func finishDirs(to *os.Root, dirs []string) error {
	for _, d := range dirs {
		if err := to.Chmod(d, 0o755); err != nil {
			return err
		}
		f, err := to.Open(d)
		if err != nil {
			return err
		}
		err = f.Sync()
		f.Close()
		if err != nil {
			return fmt.Errorf("sync %s: %w", d, err)
		}
	}
	return nil
}

func (p *Packed) copyFiles(ctx context.Context, to *os.Root) error {
	from, err := os.OpenRoot(p.dir)
	if err != nil {
		return err
	}
	defer from.Close()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(hashers())
	for i := range p.Manifest.Files {
		f := &p.Manifest.Files[i]
		g.Go(func() error {
			if err := copyFile(ctx, from, to, f); err != nil {
				return fmt.Errorf("%s: %w", quote(f.Path), err)
			}
			return nil
		})
	}
	return g.Wait()
}

func copyFile(ctx context.Context, from, to *os.Root, f *File) error {
	dst := path.Join(FilesDir, f.Path)
	if f.Link != "" {
		return to.Symlink(f.Link, dst)
	}
	r, err := openFile(from, f)
	if err != nil {
		return err
	}
	defer r.Close()
	return writeNew(to, dst, fs.FileMode(f.Mode)&^0o222, func(w *os.File) error {
		sum, err := hash(ctx, r, w, f.Size)
		if err == nil && sum != f.SHA256 {
			err = errors.New("changed since it was packed: pack again")
		}
		return err
	})
}

// writeNew writes a file that is not there yet, with exactly that mode, and syncs it.
func writeNew(to *os.Root, name string, mode fs.FileMode, write func(*os.File) error) (err error) {
	f, err := to.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	return f.Sync()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
