package release

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// PackOptions is what to pack.
type PackOptions struct {
	Dir              string // the project's directory
	Service, Version string
	// Files and Exclude are patterns relative to Dir: path.Match for each element, ** for any number of them. One that matches a directory
	// means everything in it. Each entry of Files must match something.
	Files, Exclude []string
	Spec           Spec // empty strings in it are resolved; zeros stay zeros
}

// dirtySuffix marks a version whose tree had changes that git does not know.
const dirtySuffix = "-dirty"

// Pack makes a release of the files in a directory: it reads them all, and writes nothing. The same files, options and
// modes give the same digest wherever and whenever they are packed.
//
// Modes become 0755 if anybody may execute the file, else 0644. Symlinks stay symlinks. Directories exist by what is in
// them. Left out, whatever the patterns say: .git, hotdeploy.toml, and the paths that are shared across releases.
// A version that ends in "-dirty" gets a part of the content's digest appended, as no two dirty trees are alike.
func Pack(ctx context.Context, o PackOptions) (*Packed, error) {
	o.Spec = o.Spec.clone()
	o.Spec.Resolve()
	if err := o.check(); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	defer root.Close()
	m, err := build(ctx, root, &o)
	if err != nil {
		return nil, err
	}
	return newPacked(m, dir)
}

// check finds early what Validate would find after everything was read.
func (o *PackOptions) check() error {
	if err := CheckService(o.Service); err != nil {
		return fmt.Errorf("service: %w", err)
	}
	if o.Version == "" {
		return errors.New("version: is empty: give one with --version")
	}
	if err := CheckVersion(o.Version); err != nil {
		return fmt.Errorf("version: %w", err)
	}
	return o.Spec.Validate()
}

func build(ctx context.Context, root *os.Root, o *PackOptions) (*Manifest, error) {
	list, err := collect(ctx, root, o)
	if err != nil {
		return nil, err
	}
	contents, err := readContents(ctx, root, list)
	if err != nil {
		return nil, err
	}
	m := &Manifest{Format: Format, Service: o.Service, Version: o.Version, Spec: o.Spec, Files: makeFiles(list, contents)}
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	if err := m.setNeeds(list, contents); err != nil {
		return nil, err
	}
	return m, m.tellDirty()
}

func makeFiles(list []found, contents []*content) []File {
	files := make([]File, len(list))
	for i, f := range list {
		files[i] = File{Path: f.path, Link: f.link}
		if c := contents[i]; c != nil {
			files[i].Mode, files[i].Size, files[i].SHA256 = normalMode(f.info.Mode()), c.size, c.sha256
		}
	}
	return files
}

// normalMode drops what differs between machines for no reason: the umask that a file was made under.
func normalMode(m os.FileMode) uint32 {
	if m&0o111 != 0 {
		return 0o755
	}
	return 0o644
}

func (m *Manifest) setNeeds(list []found, contents []*content) (err error) {
	n := needer{newTree(m.Files, m.Spec.Run.Shared), &m.Spec, make(map[string]*content, len(list))}
	for i, f := range list {
		if contents[i] != nil {
			n.contents[f.path] = contents[i]
		}
	}
	if m.Platform, err = n.platform(); err != nil {
		return err
	}
	m.Interpreters, err = n.interpreters()
	return err
}

// tellDirty makes two packs of two dirty trees two versions.
func (m *Manifest) tellDirty() error {
	if !strings.HasSuffix(m.Version, dirtySuffix) {
		return nil
	}
	b, err := Encode(m)
	if err != nil {
		return err
	}
	m.Version += "." + Digest(b)[:8]
	return nil
}
