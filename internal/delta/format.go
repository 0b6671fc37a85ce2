package delta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

const magic = "hdd1"

// Limits of the format.
const (
	maxSegment = 64 << 20
	maxOps     = 1 << 17 // in a segment
	maxPages   = 1 << 16 // of the old file that the copies of a segment may span to be told apart
	maxWindow  = 8 << 20 // of zstd
	maxFile    = math.MaxInt64 / 4
)

// ErrMalformed is a delta that [Make] did not write, or not for an old file of this size.
var ErrMalformed = errors.New("malformed delta")

var errShort = errors.New("it ends too early")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrMalformed, fmt.Errorf(format, args...))
}

// header is what a delta begins with.
type header struct {
	oldSize, newSize int64
	base             int64
}

func (h header) append(b []byte) []byte {
	b = append(b, magic...)
	for _, n := range []int64{h.oldSize, h.newSize, h.base} {
		b = binary.AppendUvarint(b, uint64(n))
	}
	return b
}

// segment is what a segment begins with: its length in the new file, and those of its two parts.
type segment struct{ length, coded, literal int64 }

func (s segment) append(b []byte) []byte {
	for _, n := range []int64{s.length, s.coded, s.literal} {
		b = binary.AppendUvarint(b, uint64(n))
	}
	return b
}

// input reads a delta from some place on.
type input struct {
	r    io.ReaderAt
	at   int64
	size int64 // at most; the end is where r says so
}

func (in *input) ended() (bool, error) {
	if in.at >= in.size {
		return true, nil
	}
	n, err := in.r.ReadAt(make([]byte, 1), in.at)
	switch {
	case n == 1:
		return false, nil
	case err == io.EOF:
		return true, nil
	}
	return false, fmt.Errorf("read the delta: %w", err)
}

// numbers reads several at once.
func (in *input) numbers(into ...*int64) error {
	var buf [binary.MaxVarintLen64 * 4]byte
	b := buf[:min(int64(len(buf)), in.size-in.at)]
	n, err := in.r.ReadAt(b, in.at)
	if n < len(b) && err != io.EOF {
		return fmt.Errorf("read the delta: %w", err)
	}
	b = b[:n]
	for _, p := range into {
		v, n := binary.Uvarint(b)
		if n <= 0 || v > maxFile {
			return malformed("no number where one is due")
		}
		*p, b, in.at = int64(v), b[n:], in.at+int64(n)
	}
	return nil
}

func (in *input) header() (h header, err error) {
	var b [len(magic)]byte
	if n, err := in.r.ReadAt(b[:], 0); n < len(b) && err != io.EOF {
		return h, fmt.Errorf("read the delta: %w", err)
	}
	if string(b[:]) != magic {
		return h, malformed("it does not begin as one of version 1")
	}
	in.at = int64(len(magic))
	return h, in.numbers(&h.oldSize, &h.newSize, &h.base)
}

// segment reads the beginning of a segment; in is then at its coded part.
func (in *input) segment() (s segment, err error) {
	if err := in.numbers(&s.length, &s.coded, &s.literal); err != nil {
		return s, err
	}
	if s.length == 0 || s.length > maxSegment || s.coded > in.size-in.at || s.literal > in.size-in.at-s.coded {
		return s, malformed("a segment of %d bytes in %d and %d", s.length, s.coded, s.literal)
	}
	return s, nil
}

func noEOF(err error) error {
	if err == io.EOF || err == nil {
		return io.ErrUnexpectedEOF
	}
	return err
}

// opCoder codes the ops of one segment.
type opCoder struct {
	c                            *coder
	count, literal, length, jump number
	shift                        int64 // of the copy before: old - new
}

func newOpCoder(c *coder) *opCoder {
	return &opCoder{c: c, count: newNumber(), literal: newNumber(), length: newNumber(), jump: newNumber()}
}

func (o *opCoder) code(p op) op {
	p.literal = int64(o.literal.code(o.c, uint64(p.literal)))
	p.length = int64(o.length.code(o.c, uint64(p.length)))
	if p.length != 0 {
		jump := o.jump.signed(o.c, p.old-p.new-o.shift)
		if o.c.decoding {
			p.old = jump // the caller adds where it would be
		}
	}
	return p
}
