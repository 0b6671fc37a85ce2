package delta

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Make writes to w how new comes of old; an empty old gives new compressed. It reads both several times where they are large. Both
// must not change meanwhile: if they do the delta is of no use, and its user notices.
//
// It takes a processor some 30 ms for each megabyte.
func Make(ctx context.Context, w io.Writer, old, new *io.SectionReader) error {
	h := header{oldSize: old.Size(), newSize: new.Size(), base: pointerBase(old)}
	if _, err := w.Write(h.append(nil)); err != nil {
		return err
	}
	m := &maker{out: w, head: h, old: windows{r: old, total: new.Size()}}
	if old.Size() == 0 {
		return m.plain(ctx, new)
	}
	if err := m.open(); err != nil {
		return err
	}
	defer m.zstd.Close()
	buf := make([]byte, min(segmentSize, new.Size()))
	for at := int64(0); at < new.Size(); {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		b := buf[:min(segmentSize, new.Size()-at)]
		if n, err := new.ReadAt(b, at); n < len(b) {
			return fmt.Errorf("read the new file: %w", noEOF(err))
		}
		if err := m.segment(ctx, b, at); err != nil {
			return err
		}
		at += int64(len(b))
	}
	return nil
}

// maker writes one delta.
type maker struct {
	out     io.Writer
	head    header
	old     windows
	zstd    *zstd.Encoder
	literal bytes.Buffer // what zstd has written and the delta has not
}

// open begins the stream of literals.
func (m *maker) open() (err error) {
	window := int64(zstd.MinWindowSize)
	for window < maxWindow && window < m.head.newSize {
		window *= 2
	}
	m.zstd, err = zstd.NewWriter(&m.literal, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithWindowSize(int(window)),
		zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	return err
}

func (m *maker) segment(ctx context.Context, new []byte, at int64) error {
	old, oldAt, err := m.old.around(ctx, new, at)
	if err != nil {
		return err
	}
	ops := old.find(new)
	coded, err := m.code(ctx, ops, old.old, new, oldAt, at)
	if err != nil {
		return err
	}
	for _, o := range ops {
		if _, err := m.zstd.Write(new[o.new-o.literal : o.new]); err != nil {
			return err
		}
	}
	if at+int64(len(new)) == m.head.newSize {
		err = m.zstd.Close()
	} else {
		err = m.zstd.Flush()
	}
	if err != nil {
		return err
	}
	defer m.literal.Reset()
	return m.write(len(new), coded, m.literal.Bytes())
}

func (m *maker) write(length int, coded, literal []byte) error {
	head := segment{int64(length), int64(len(coded)), int64(len(literal))}.append(nil)
	for _, b := range [][]byte{head, coded, literal} {
		if _, err := m.out.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// code codes ops and differences. The places in ops are relative to old and new, which are at those places of the files.
func (m *maker) code(ctx context.Context, ops []op, old, new []byte, oldAt, newAt int64) ([]byte, error) {
	c := newEncoder()
	oc := newOpCoder(c)
	oc.count.code(c, uint64(len(ops)))
	whole := make([]op, len(ops))
	for i, o := range ops {
		o.old, o.new = o.old+oldAt, o.new+newAt
		whole[i] = oc.code(o)
		if o.length > 0 {
			oc.shift = o.old - o.new
		}
	}
	d := newDifference(c, newShifts(whole), m.head.base)
	for _, o := range ops {
		d.count(old[o.old:o.old+o.length], new[o.new:o.new+o.length])
	}
	for _, o := range ops {
		for k := int64(0); k < o.length; k += pieceSize {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			end := min(k+pieceSize, o.length)
			d.code(old[o.old+k:o.old+end], new[o.new+k:o.new+end], oldAt+o.old+k, newAt+o.new+k)
		}
	}
	return c.finish(), nil
}

// pointerBase is where an ELF file wants to lie in memory; zero for any other.
func pointerBase(r *io.SectionReader) int64 {
	f, err := elf.NewFile(r)
	if err != nil {
		return 0
	}
	for _, p := range f.Progs {
		if base := p.Vaddr - p.Off; p.Type == elf.PT_LOAD && p.Vaddr >= p.Off && base <= maxFile {
			return int64(base)
		}
	}
	return 0
}
