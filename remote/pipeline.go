package remote

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/pkg/sftp"
)

const (
	osCreate = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	osResume = os.O_WRONLY
)

// pipeline sends one file. It belongs to one goroutine.
type pipeline struct {
	u      *upload
	part   Part
	src    Source
	file   *sftp.File
	digest hash.Hash
	next   int64 // first byte that is not sent yet
	onWay  []sent
}

// sent is a write that the host has not confirmed.
type sent struct {
	end  int64
	n    int64
	done chan error // capacity one
}

func (u *upload) send(ctx context.Context, f *sftp.File, src Source, part Part) error {
	p := &pipeline{u: u, part: part, src: src, file: f, digest: sha256.New(), next: part.start()}
	if err := p.skip(ctx); err != nil {
		return err
	}
	for p.next < part.Size || len(p.onWay) > 0 {
		var err error
		if p.next < part.Size && len(p.onWay) < maxInFlight {
			err = p.write(ctx)
		} else {
			err = p.confirm(ctx)
		}
		if err != nil {
			return err
		}
	}
	return p.verify()
}

// skip reads what the host has already, for the digest.
func (p *pipeline) skip(ctx context.Context) error {
	buf := make([]byte, 1<<20)
	for off := int64(0); off < p.next; {
		b := buf[:min(int64(len(buf)), p.next-off)]
		if err := p.read(b, off); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		off += int64(len(b))
	}
	return nil
}

func (p *pipeline) read(b []byte, off int64) error {
	n, err := p.src.ReadAt(b, off)
	switch {
	case n == len(b):
		p.digest.Write(b)
		return nil
	case errors.Is(err, io.EOF):
		return fmt.Errorf("upload %s: %w: it ends after %d of %d bytes", p.part.Name, ErrSourceChanged, off+int64(n), p.part.Size)
	}
	return fmt.Errorf("upload %s: %w", p.part.Name, err)
}

// write sends the next packet. It waits when too many are on the way, of
// this file and others.
func (p *pipeline) write(ctx context.Context) error {
	if err := p.u.writes.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	buf, ok := p.u.buffers.Get().(*[packetSize]byte)
	if !ok {
		buf = new([packetSize]byte)
	}
	off := p.next
	b := buf[:min(packetSize, p.part.Size-off)]
	if err := p.read(b, off); err != nil {
		p.u.writes.Release(1)
		return err
	}
	p.next += int64(len(b))
	s := sent{end: p.next, n: int64(len(b)), done: make(chan error, 1)}
	p.onWay = append(p.onWay, s)
	go func() { // ends with the answer, or with the channel
		_, err := p.file.WriteAt(b, off)
		p.u.buffers.Put(buf)
		p.u.writes.Release(1)
		s.done <- err
	}()
	return nil
}

// confirm waits for the oldest write. That it is the oldest is what Rewind
// relies on.
func (p *pipeline) confirm(ctx context.Context) error {
	oldest := p.onWay[0]
	select {
	case err := <-oldest.done:
		if err != nil {
			return fmt.Errorf("write %s on the host: %w", p.file.Name(), err)
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	p.onWay = p.onWay[1:]
	p.u.confirmed(p.part, oldest.end, oldest.n)
	return nil
}

func (p *pipeline) verify() error {
	if hex.EncodeToString(p.digest.Sum(nil)) != p.part.Name {
		return fmt.Errorf("upload %s: %w: its digest is another now", p.part.Name, ErrSourceChanged)
	}
	return nil
}
