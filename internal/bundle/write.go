package bundle

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/hotdeploy/hotdeploy/internal/delta"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

const magic = "hdb1"

// maxRecipe is enough for a recipe of the largest manifests.
const maxRecipe = 4 << 20

// File is an open content.
type File interface {
	io.ReaderAt
	io.Closer
}

// Source is a release whose contents can be read.
type Source struct {
	Manifest *release.Manifest
	Open     func(f *release.File) (File, error) // the caller closes what it gets
}

// contents is what the ranges name, one behind another.
func (s Source) contents(r Ranges) (*joined, *io.SectionReader, error) {
	if s.Manifest == nil {
		return &joined{}, io.NewSectionReader(&joined{}, 0, 0), nil
	}
	files, size, err := r.files(s.Manifest)
	if err != nil {
		return nil, nil, err
	}
	j := &joined{open: s.Open}
	at := int64(0)
	for _, f := range files {
		j.files, j.starts = append(j.files, f), append(j.starts, at)
		at += f.Size
	}
	return j, io.NewSectionReader(j, 0, size), nil
}

// Write writes the bundle of r. The base may be zero where r has none.
func Write(ctx context.Context, w io.Writer, r Recipe, base, to Source) error {
	if r.Base == "" {
		base = Source{}
	}
	old, from, err := base.contents(r.From)
	if err != nil {
		return err
	}
	defer old.close()
	new, into, err := to.contents(r.To)
	if err != nil {
		return err
	}
	defer new.close()
	recipe := r.encode()
	head := append(binary.AppendUvarint([]byte(magic), uint64(len(recipe))), recipe...)
	if _, err := w.Write(head); err != nil {
		return err
	}
	return delta.Make(ctx, w, from, into)
}

// Bundle is one that was written, and is read again.
type Bundle struct {
	Recipe
	delta *io.SectionReader
}

// Open reads the recipe. The bundle may still be arriving: then r waits, and size may be more than will come. Whether it makes sense shows in [Bundle.Apply].
func Open(r io.ReaderAt, size int64) (*Bundle, error) {
	head := make([]byte, min(size, int64(len(magic)+binary.MaxVarintLen64)))
	n, err := r.ReadAt(head, 0)
	if n < len(head) && err != io.EOF {
		return nil, fmt.Errorf("read the bundle: %w", err)
	}
	head = head[:n]
	if len(head) < len(magic) || string(head[:len(magic)]) != magic {
		return nil, malformed("it does not begin as one of version %d", Format)
	}
	length, n := binary.Uvarint(head[len(magic):])
	at := int64(len(magic) + n)
	if n <= 0 || length > maxRecipe || int64(length) > size-at {
		return nil, malformed("its recipe has %d bytes", length)
	}
	b := make([]byte, length)
	if n, err := r.ReadAt(b, at); err == io.EOF && n < len(b) {
		return nil, malformed("it ends within its recipe")
	} else if n < len(b) {
		return nil, fmt.Errorf("read the bundle: %w", err)
	}
	at += int64(length)
	out := &Bundle{delta: io.NewSectionReader(r, at, size-at)}
	if err := decodeStrict(b, &out.Recipe); err != nil {
		return nil, malformed("its recipe: %w", err)
	}
	return out, nil
}

// Apply makes the contents that the recipe names, and gives each to one writer, which keep makes for it and closes. Base is what the
// recipe names as that; zero if it names none. Nothing is compared with a digest here.
func (b *Bundle) Apply(ctx context.Context, base Source, to *release.Manifest, keep func(f *release.File) (io.WriteCloser, error)) error {
	old, from, err := base.contents(b.From)
	if err != nil {
		return err
	}
	defer old.close()
	files, size, err := b.To.files(to)
	if err != nil {
		return err
	}
	s := &splitter{files: files, keep: keep}
	if err := delta.Apply(ctx, s, from, b.delta, size); err != nil {
		s.abandon()
		return err
	}
	if s.now != nil || len(s.files) > 0 {
		s.abandon()
		return malformed("it ends before %d of the contents", len(s.files))
	}
	return nil
}
