package remote

import (
	"context"
	"io"
	"os"
	"sync"
)

// spool is a file that one writes while any number read it, each from its own place on.
type spool struct {
	file *os.File

	mu   sync.Mutex // protects what follows
	size int64
	err  error // why it ends; io.EOF: it is complete
	news chan struct{}
}

// newSpool makes a spool that fill writes, in a goroutine of its own. It has no name on the disk and is gone with its last descriptor.
func newSpool(fill func(w io.Writer) error) (*spool, error) {
	f, err := os.CreateTemp("", "hotdeploy-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	s := &spool{file: f, news: make(chan struct{})}
	go func() { // ends with fill's context
		err := fill(s)
		if err == nil {
			err = io.EOF
		}
		s.tell(0, err)
	}()
	return s, nil
}

func (s *spool) Write(b []byte) (int, error) {
	n, err := s.file.Write(b)
	s.tell(int64(n), nil)
	return n, err
}

func (s *spool) tell(n int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.size, s.err = s.size+n, err
	close(s.news)
	s.news = make(chan struct{})
}

func (s *spool) state() (size int64, news <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.size, s.news, s.err
}

// wait waits until it is longer than size or has ended, and tells how long it is.
func (s *spool) wait(ctx context.Context, size int64) (int64, error) {
	for {
		now, news, err := s.state()
		if now > size || err != nil {
			return now, err
		}
		select {
		case <-news:
		case <-ctx.Done():
			return now, context.Cause(ctx)
		}
	}
}

// close must come after the last read.
func (s *spool) close() error { return s.file.Close() }

// spoolReader reads a spool from a place on; it waits for what is not written yet.
type spoolReader struct {
	ctx   context.Context
	spool *spool
	at    int64
	sent  func(at int64) // is told how far it has come
}

func (r *spoolReader) Read(b []byte) (int, error) {
	size, err := r.spool.wait(r.ctx, r.at)
	if size <= r.at {
		return 0, err
	}
	n, err := r.spool.file.ReadAt(b[:min(int64(len(b)), size-r.at)], r.at)
	if n > 0 {
		r.at += int64(n)
		r.sent(r.at)
		err = nil
	}
	return n, err
}
