package delta

import (
	"context"
	"fmt"
	"io"
	"runtime"

	"github.com/klauspost/compress/zstd"
)

// Without an old file there is nothing to look for. What is new is compressed in pieces, each of them a segment and a zstd frame of
// its own, on several processors; the first is written when it is made, so that sending begins at once.
const (
	plainSize    = 4 << 20
	plainWorkers = 8 // at most
)

func (m *maker) plain(ctx context.Context, new *io.SectionReader) error {
	workers := min(plainWorkers, runtime.GOMAXPROCS(0))
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithWindowSize(plainSize),
		zstd.WithEncoderConcurrency(workers), zstd.WithEncoderCRC(false))
	if err != nil {
		return err
	}
	type piece struct {
		length int
		frame  chan []byte // capacity one
	}
	var pieces []piece // that are being compressed, in their order
	for at := int64(0); at < new.Size() || len(pieces) > 0; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if at < new.Size() && len(pieces) < workers {
			b := make([]byte, min(plainSize, new.Size()-at))
			if n, err := new.ReadAt(b, at); n < len(b) {
				return fmt.Errorf("read the new file: %w", noEOF(err))
			}
			p := piece{len(b), make(chan []byte, 1)}
			go func() { p.frame <- z.EncodeAll(b, nil) }() // ends soon, and needs nobody
			pieces, at = append(pieces, p), at+int64(len(b))
			continue
		}
		p := pieces[0]
		pieces = pieces[1:]
		if err := m.write(p.length, allLiteral(p.length), <-p.frame); err != nil {
			return err
		}
	}
	return nil
}

// allLiteral is the coded part of a segment without a copy.
func allLiteral(length int) []byte {
	c := newEncoder()
	oc := newOpCoder(c)
	oc.count.code(c, 1)
	oc.code(op{literal: int64(length)})
	return c.finish()
}
