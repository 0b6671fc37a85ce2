package release

import (
	"context"
	"errors"
	"os"
)

var errTODO = errors.New("not built yet")

// ErrDamaged is a release directory that is not what its manifest says.
var ErrDamaged = errors.New("the release is damaged")

// PackOptions is what to pack.
type PackOptions struct {
	Dir              string // the project's directory
	Service, Version string
	Files, Exclude   []string // patterns relative to Dir
	Spec             Spec
}

// Packed is a release that is ready to be sent.
type Packed struct {
	Manifest *Manifest
	Bytes    []byte // the encoded manifest
	Digest   string // of Bytes
}

// Pack makes a release of the files in a directory.
func Pack(ctx context.Context, o PackOptions) (*Packed, error) { return nil, errTODO }

// Load opens a directory that WriteTo wrote.
func Load(ctx context.Context, dir string) (*Packed, error) { return nil, errTODO }

// Open opens the content with that SHA-256 for reading. The caller closes it.
func (p *Packed) Open(sha256 string) (*os.File, error) { return nil, errTODO }

// TotalBytes is the size of all files.
func (p *Packed) TotalBytes() int64 { return 0 }

// WriteTo writes manifest.json and files/ as the new directory dir.
func (p *Packed) WriteTo(ctx context.Context, dir string) error { return errTODO }

// GitVersion makes a version of what git says about dir.
func GitVersion(ctx context.Context, dir string) (string, error) { return "", errTODO }

// Verify compares what is in files, opened at a release's files directory, with m.
// The error names the first bad path and is ErrDamaged.
func Verify(ctx context.Context, files *os.Root, m *Manifest) error { return errTODO }
