package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Packed is a release that is ready to be sent. Its files stay where they are: in the project, or in a directory
// that WriteTo wrote.
type Packed struct {
	Manifest *Manifest
	Bytes    []byte // the encoded manifest
	Digest   string // of Bytes

	dir   string           // where the files are
	files map[string]*File // by SHA256
}

func newPacked(m *Manifest, dir string) (*Packed, error) {
	b, err := Encode(m)
	if err != nil {
		return nil, err
	}
	p := &Packed{Manifest: m, Bytes: b, Digest: Digest(b), dir: dir, files: make(map[string]*File)}
	for i := range m.Files {
		if f := &m.Files[i]; f.Link == "" && p.files[f.SHA256] == nil {
			p.files[f.SHA256] = f
		}
	}
	return p, nil
}

// Ref names the release.
func (p *Packed) Ref() Ref { return Ref{p.Manifest.Version, p.Digest} }

// TotalBytes is the size of all files together, as they lie on the disk.
func (p *Packed) TotalBytes() int64 { return p.Manifest.TotalBytes() }

// Open opens the content with that SHA-256 for reading; the caller closes it. It compares the length only: whether the
// content is still the one that was packed, its receiver finds out.
func (p *Packed) Open(sha256 string) (*os.File, error) {
	f := p.files[sha256]
	if f == nil {
		return nil, fmt.Errorf("content %s: not in this release: %w", quote(sha256), fs.ErrNotExist)
	}
	root, err := os.OpenRoot(p.dir)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", quote(f.Path), err)
	}
	defer root.Close()
	r, err := openFile(root, f)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", quote(f.Path), err)
	}
	return r, nil
}

// Check reads a file of the release again: is it still what was packed?
func (p *Packed) Check(ctx context.Context, f *File) error {
	r, err := p.Open(f.SHA256)
	if err != nil {
		return err
	}
	defer r.Close()
	sum, err := hash(ctx, r, nil, f.Size)
	if err == nil && sum != f.SHA256 {
		err = errChanged
	}
	if err != nil {
		return fmt.Errorf("%s: %w", quote(f.Path), err)
	}
	return nil
}

// openFile opens f if it is still a regular file of its size.
func openFile(root *os.Root, f *File) (*os.File, error) {
	info, err := root.Lstat(f.Path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() != f.Size {
		return nil, errors.New("changed since it was packed: pack again")
	}
	return openSame(root, f.Path, info)
}

// Load opens a directory that [Packed.WriteTo] wrote. It reads the manifest and looks whether every file is there with its
// type and size; the contents are compared where they arrive.
func Load(ctx context.Context, dir string) (*Packed, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	m, err := ReadManifest(dir)
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	files, err := os.OpenRoot(filepath.Join(dir, FilesDir))
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	defer files.Close()
	if err := survey(ctx, files, m); err != nil {
		return nil, fmt.Errorf("load %s: %w", dir, err)
	}
	return newPacked(m, files.Name())
}

// ReadManifest reads manifest.json in a release's directory.
func ReadManifest(dir string) (*Manifest, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.Open(ManifestName)
	if err != nil {
		return nil, fmt.Errorf("%s: not a packed release: %w", dir, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxManifestBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read the manifest: %w", err)
	}
	m, err := Decode(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, ManifestName), err)
	}
	return m, nil
}
