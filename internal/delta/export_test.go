package delta

import (
	"bytes"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// SetSizes makes segments and windows of other sizes for one test.
func SetSizes(t *testing.T, segment, window int64) {
	s, w := segmentSize, windowSize
	t.Cleanup(func() { segmentSize, windowSize = s, w })
	segmentSize, windowSize = segment, window
}

// Hostile are deltas, of old files of that size, that nobody makes but to do harm.
func Hostile(oldSize int64) map[string][]byte {
	frame := func(b []byte, o ...zstd.EOption) []byte {
		z, err := zstd.NewWriter(nil, o...)
		if err != nil {
			panic(err)
		}
		return z.EncodeAll(b, nil)
	}
	whole := func(newSize int64, segments ...[]byte) []byte {
		return slices.Concat(append([][]byte{header{oldSize: oldSize, newSize: newSize}.append(nil)}, segments...)...)
	}
	coded := func(count uint64, ops ...op) []byte {
		c := newEncoder()
		oc := newOpCoder(c)
		oc.count.code(c, count)
		for _, o := range ops {
			oc.code(o)
		}
		return c.finish()
	}
	seg := func(length int, coded, literal []byte) []byte {
		return slices.Concat(segment{int64(length), int64(len(coded)), int64(len(literal))}.append(nil), coded, literal)
	}
	const size = maxSegment
	ones := slices.Repeat([]op{{literal: 1}}, 1<<20)
	window := frame(make([]byte, 9<<20), zstd.WithWindowSize(512<<20), zstd.WithSingleSegment(false))
	window[5] = 0xb8 // the frame now says that its window has 8 GiB
	return map[string][]byte{
		"a bomb":                       whole(1000, seg(1000, allLiteral(1000), frame(make([]byte, 1<<30)))),
		"a bomb that says so":          whole(1<<40, seg(size, allLiteral(size), frame(make([]byte, 1<<20)))),
		"a window of gigabytes":        whole(9<<20, seg(9<<20, allLiteral(9<<20), window)),
		"a reference past the end":     whole(100, seg(100, coded(1, op{old: oldSize - 50, length: 100}), nil)),
		"a reference before the start": whole(100, seg(100, coded(1, op{old: -50, length: 100}), nil)),
		"a reference far away":         whole(100, seg(100, coded(1, op{old: maxFile - 1, length: 100}), nil)),
		"more ops than there are":      whole(1<<20, seg(1<<20, coded(1<<20, ones...), nil)),
		"ops without end":              whole(1000, seg(1000, coded(1<<62), nil)),
		"ops that make nothing":        whole(1000, seg(1000, coded(maxOps, make([]op, maxOps)...), nil)),
		"a segment beyond all":         whole(1<<40, segment{1 << 40, 0, 0}.append(nil)),
		"a part that is not there":     whole(1000, segment{1000, 1 << 50, 1 << 50}.append(nil)),
		"many empty segments":          whole(1000, bytes.Repeat(segment{}.append(nil), 1<<20)),
	}
}
