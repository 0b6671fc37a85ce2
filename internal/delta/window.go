package delta

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/bits"
	"slices"
)

// Of an old file that is larger than this, each segment of the new one sees a part only: that which has most in common with it. What
// they have in common is told by anchors, places that are chosen by the bytes before them.
const (
	mostAnchors = 1 << 18
	bufferSize  = 1 << 20
)

// windowSize and segmentSize are smaller in tests.
var (
	windowSize  int64 = 96 << 20
	segmentSize int64 = maxSegment
)

// windows gives the parts of an old file.
type windows struct {
	r     *io.SectionReader
	total int64 // size of the new file

	now     *matcher // of the part that is in memory
	at      int64
	anchors map[uint64]int64 // of the whole file; nil: it is small enough to be seen as a whole
	sparse  int              // one byte in 1<<sparse is an anchor
}

// around is the part to look at for the segment new, and where in the old file it begins.
func (w *windows) around(ctx context.Context, new []byte, at int64) (*matcher, int64, error) {
	from := int64(0)
	if w.r.Size() > windowSize {
		if w.anchors == nil {
			if err := w.survey(ctx); err != nil {
				return nil, 0, err
			}
		}
		from = w.choose(new, at)
	}
	if w.now != nil && w.at == from {
		return w.now, from, nil
	}
	var b []byte
	if w.now != nil {
		b = w.now.old[:0]
	}
	w.now = nil
	b = slices.Grow(b, int(min(windowSize, w.r.Size())))[:min(windowSize, w.r.Size()-from)]
	if n, err := w.r.ReadAt(b, from); n < len(b) {
		return nil, 0, fmt.Errorf("read the old file: %w", noEOF(err))
	}
	w.now, w.at = newMatcher(b), from
	return w.now, from, nil
}

// survey finds the anchors of the whole file.
func (w *windows) survey(ctx context.Context) error {
	w.sparse = max(12, bits.Len64(uint64(w.r.Size()/mostAnchors)))
	w.anchors = map[uint64]int64{}
	r := bufio.NewReaderSize(io.NewSectionReader(w.r, 0, w.r.Size()), bufferSize)
	f := finder{sparse: w.sparse}
	for at := int64(0); at < w.r.Size(); {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		b, err := r.Peek(int(min(bufferSize, w.r.Size()-at)))
		if err != nil {
			return fmt.Errorf("read the old file: %w", noEOF(err))
		}
		f.find(b, func(hash uint64, i int) {
			if _, ok := w.anchors[hash]; !ok && len(w.anchors) < 4*mostAnchors {
				w.anchors[hash] = at + int64(i)
			}
		})
		r.Discard(len(b))
		at += int64(len(b))
	}
	return nil
}

// choose finds the part with most of a segment's anchors. Without any it is the part as far into the file as the segment is into the new one.
func (w *windows) choose(new []byte, at int64) int64 {
	var hits []int64
	f := finder{sparse: w.sparse}
	f.find(new, func(hash uint64, _ int) {
		if place, ok := w.anchors[hash]; ok {
			hits = append(hits, place)
		}
	})
	last := w.r.Size() - windowSize
	if len(hits) == 0 {
		return min(last, int64(float64(at)/float64(w.total)*float64(last)))
	}
	slices.Sort(hits)
	best, first, end := 0, 0, 0
	for i, j := 0, 0; j < len(hits); j++ {
		for hits[j]-hits[i] > windowSize {
			i++
		}
		if j-i+1 > best {
			best, first, end = j-i+1, i, j
		}
	}
	return min(last, max(0, (hits[first]+hits[end]-windowSize)/2))
}

// finder finds anchors by a hash of the last 64 bytes, the older ones of which weigh less.
type finder struct {
	hash   uint64
	sparse int
}

func (f *finder) find(b []byte, found func(hash uint64, i int)) {
	h, shift := f.hash, 64-f.sparse
	for i, c := range b {
		h = h<<1 + gear[c]
		if h>>shift == 0 {
			found(h, i)
		}
	}
	f.hash = h
}

var gear = func() (t [256]uint64) {
	x := uint64(0)
	for i := range t {
		x += 0x9e3779b97f4a7c15
		z := (x ^ x>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		t[i] = z ^ z>>31
	}
	return t
}()
