package spool

import (
	"context"
	"io"
	"os"
	"sync"
)

// Spool is a file that grows. One goroutine writes and ends it; any number read, each from wherever it likes.
type Spool struct {
	file *os.File

	mu   sync.Mutex // protects what follows
	size int64
	err  error // why it ends; io.EOF: it is complete
	news chan struct{}
}

// New is a spool of which size bytes are there. The file belongs to it from now on.
func New(f *os.File, size int64) *Spool {
	return &Spool{file: f, size: size, news: make(chan struct{})}
}

// Write appends.
func (s *Spool) Write(b []byte) (int, error) {
	at, _ := s.State()
	n, err := s.file.WriteAt(b, at)
	s.tell(int64(n), nil)
	return n, err
}

// End says that nothing comes any more. With a nil error it is complete.
func (s *Spool) End(err error) {
	if err == nil {
		err = io.EOF
	}
	s.tell(0, err)
}

func (s *Spool) tell(n int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.size, s.err = s.size+n, err
	close(s.news)
	s.news = make(chan struct{})
}

// State is how long it is, and why it ends if it has: [io.EOF] if it is complete.
func (s *Spool) State() (size int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.size, s.err
}

// Wait waits until it is longer than size or has ended, and tells how long it is.
func (s *Spool) Wait(ctx context.Context, size int64) (int64, error) {
	for {
		s.mu.Lock()
		now, news, err := s.size, s.news, s.err
		s.mu.Unlock()
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

// Close must come after the last read and write.
func (s *Spool) Close() error { return s.file.Close() }

// ReaderAt reads it and waits for what is not there yet, until ctx ends.
func (s *Spool) ReaderAt(ctx context.Context) io.ReaderAt { return readerAt{ctx, s} }

type readerAt struct {
	ctx   context.Context
	spool *Spool
}

func (r readerAt) ReadAt(b []byte, off int64) (int, error) {
	size, err := r.spool.Wait(r.ctx, off+int64(len(b))-1)
	if size <= off {
		return 0, err
	}
	n, readErr := r.spool.file.ReadAt(b[:min(int64(len(b)), size-off)], off)
	switch {
	case n == len(b):
		return n, nil
	case readErr != nil:
		return n, readErr
	}
	return n, err
}

// Reader reads it from a place on as it grows. Sent, if not nil, is told how far it has come.
func (s *Spool) Reader(ctx context.Context, at int64, sent func(at int64)) io.Reader {
	return &reader{ctx, s, at, sent}
}

type reader struct {
	ctx   context.Context
	spool *Spool
	at    int64
	sent  func(at int64)
}

func (r *reader) Read(b []byte) (int, error) {
	size, err := r.spool.Wait(r.ctx, r.at)
	if size <= r.at {
		return 0, err
	}
	n, err := r.spool.file.ReadAt(b[:min(int64(len(b)), size-r.at)], r.at)
	if n > 0 {
		r.at += int64(n)
		if err = nil; r.sent != nil {
			r.sent(r.at)
		}
	}
	return n, err
}
