package delta

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// ErrTooLarge is a delta whose result would be larger than was allowed.
var ErrTooLarge = errors.New("the delta makes a larger file than expected")

// Apply writes to w what a delta makes of old, at most limit bytes. It reads both in pieces and keeps nothing. What was written before
// an error is of no use.
//
// The delta may still be arriving: it is read from its beginning to its end, but for its two parts in turn, and a reader may wait for what is
// not there yet. The section may then be longer than the delta.
//
// The error is [ErrMalformed], [ErrTooLarge], that of a read or of w, or that of ctx.
func Apply(ctx context.Context, w io.Writer, old, delta *io.SectionReader, limit int64) error {
	in := &input{r: delta, size: delta.Size()}
	h, err := in.header()
	switch {
	case err != nil:
		return err
	case h.oldSize != old.Size():
		return malformed("it is for an old file of %d bytes, this one has %d", h.oldSize, old.Size())
	case h.newSize > limit:
		return fmt.Errorf("%w: %d bytes, not %d", ErrTooLarge, h.newSize, limit)
	}
	a := &applier{ctx: ctx, out: w, old: old, head: h}
	if err := a.open(*in); err != nil {
		return err
	}
	defer a.zstd.Close()
	for a.done < h.newSize {
		if err := a.segment(in); err != nil {
			return err
		}
	}
	ended, err := in.ended()
	if err == nil && !ended {
		err = malformed("something follows it")
	}
	if err == nil {
		err = a.nothingLeft()
	}
	return err
}

// nothingLeft refuses literals that nobody asked for.
func (a *applier) nothingLeft() error {
	n, err := a.zstd.Read(a.is[:1])
	switch {
	case n > 0:
		return malformed("it has more literals than it uses")
	case err != io.EOF:
		return malformed("its literals: %w", noEOF(err))
	}
	return nil
}

// applier makes one file.
type applier struct {
	ctx     context.Context
	out     io.Writer
	old     *io.SectionReader
	head    header
	zstd    *zstd.Decoder
	done    int64 // of the new file
	was, is [pieceSize]byte
}

// open begins to read the literals of all segments, the first of which is at in.
func (a *applier) open(in input) (err error) {
	a.zstd, err = zstd.NewReader(&literals{in: in}, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	return err
}

// literals reads the literal parts of the segments one after another.
type literals struct {
	in   input // at the next segment
	part *io.SectionReader
}

func (l *literals) Read(b []byte) (int, error) {
	for {
		if l.part != nil {
			if n, err := l.part.Read(b); n > 0 || err != io.EOF {
				return n, err
			}
		}
		ended, err := l.in.ended()
		if err != nil {
			return 0, err
		}
		if ended {
			return 0, io.EOF
		}
		s, err := l.in.segment()
		if err != nil {
			return 0, err
		}
		l.part = io.NewSectionReader(l.in.r, l.in.at+s.coded, s.literal)
		l.in.at += s.coded + s.literal
	}
}

func (a *applier) segment(in *input) error {
	s, err := in.segment()
	if err != nil {
		return err
	}
	if s.length > a.head.newSize-a.done {
		return malformed("a segment goes beyond the end")
	}
	c := newDecoder(bufio.NewReaderSize(io.NewSectionReader(in.r, in.at, s.coded), 64<<10))
	in.at += s.coded + s.literal
	ops, err := a.ops(c, s.length)
	if err != nil {
		return err
	}
	d := newDifference(c, newShifts(ops), a.head.base)
	for _, o := range ops {
		if err := a.op(d, o); err != nil {
			return err
		}
	}
	a.done += s.length
	return nil
}

// ops reads the ops of a segment.
func (a *applier) ops(c *coder, length int64) ([]op, error) {
	oc := newOpCoder(c)
	n := oc.count.code(c, 0)
	if n > maxOps || c.err != nil {
		return nil, malformed("%d ops in a segment: %w", n, c.err)
	}
	var ops []op
	at, end := a.done, a.done+length
	for range n {
		o := oc.code(op{})
		if c.err != nil || o.literal < 0 || o.length < 0 || o.literal > end-at || o.length > end-at-o.literal {
			return nil, malformed("an op goes beyond its segment: %w", c.err)
		}
		o.new = at + o.literal
		if o.length > 0 {
			if o.old > maxFile || o.old < -maxFile {
				return nil, malformed("a copy from nowhere")
			}
			o.old += o.new + oc.shift
			oc.shift = o.old - o.new
			if o.old < 0 || o.old > a.head.oldSize-o.length {
				return nil, malformed("a copy from outside of the old file")
			}
		}
		at = o.new + o.length
		ops = append(ops, o)
	}
	if at != end {
		return nil, malformed("the ops are %d bytes short", end-at)
	}
	return ops, nil
}

func (a *applier) op(d *difference, o op) error {
	for left := o.literal; left > 0; { // in pieces, so that it ends with ctx
		if a.ctx.Err() != nil {
			return context.Cause(a.ctx)
		}
		b := a.is[:min(left, pieceSize)]
		if _, err := io.ReadFull(a.zstd, b); err != nil {
			return malformed("its literals: %w", noEOF(err))
		}
		if _, err := a.out.Write(b); err != nil {
			return err
		}
		left -= int64(len(b))
	}
	for k := int64(0); k < o.length; k += pieceSize {
		if a.ctx.Err() != nil {
			return context.Cause(a.ctx)
		}
		if err := a.piece(d, o.old+k, o.new+k, int(min(pieceSize, o.length-k))); err != nil {
			return err
		}
	}
	return nil
}

func (a *applier) piece(d *difference, oldAt, newAt int64, n int) error {
	if got, err := a.old.ReadAt(a.was[:n], oldAt); got < n {
		return fmt.Errorf("read the old file: %w", noEOF(err))
	}
	d.code(a.was[:n], a.is[:n], oldAt, newAt)
	if d.c.err != nil {
		return malformed("its differences: %w", d.c.err)
	}
	_, err := a.out.Write(a.is[:n])
	return err
}
