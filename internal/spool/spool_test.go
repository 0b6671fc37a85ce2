package spool_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/hotdeploy/hotdeploy/internal/spool"
)

func open(t *testing.T, size int64) *spool.Spool {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "spool"))
	if err != nil {
		t.Fatal(err)
	}
	s := spool.New(f, size)
	t.Cleanup(func() { s.Close() })
	return s
}

func TestSpool_ReadersWaitForWhatIsNotThereYet(t *testing.T) {
	s := open(t, 0)
	whole, part := make(chan string), make(chan string)
	go func() {
		b, err := io.ReadAll(s.Reader(t.Context(), 0, nil))
		whole <- string(b) + errText(err)
	}()
	go func() {
		b := make([]byte, 4)
		n, err := s.ReaderAt(t.Context()).ReadAt(b, 3)
		part <- string(b[:n]) + errText(err)
	}()
	for _, text := range []string{"ab", "cdef", "ghi"} {
		io.WriteString(s, text)
	}
	if got := <-part; got != "defg" {
		t.Errorf("in the middle: %q", got)
	}
	s.End(nil)
	if got := <-whole; got != "abcdefghi" {
		t.Errorf("all of it: %q", got)
	}
	b := make([]byte, 4)
	if n, err := s.ReaderAt(t.Context()).ReadAt(b, 7); n != 2 || err != io.EOF {
		t.Errorf("at the end: %d bytes, %v", n, err)
	}
}

func TestSpool_CutOrGivenUp_EveryReaderLearnsWhy(t *testing.T) {
	s := open(t, 0)
	io.WriteString(s, "abc")
	cut := errors.New("the line was lost")
	s.End(cut)
	if b, err := io.ReadAll(s.Reader(t.Context(), 1, nil)); string(b) != "bc" || err != cut {
		t.Errorf("%q, %v", b, err)
	}
	if n, err := s.ReaderAt(t.Context()).ReadAt(make([]byte, 9), 1); n != 2 || err != cut {
		t.Errorf("%d bytes, %v", n, err)
	}
	ctx, stop := context.WithCancelCause(t.Context())
	stop(cut)
	if _, err := open(t, 0).ReaderAt(ctx).ReadAt(make([]byte, 9), 1); err != cut {
		t.Errorf("given up: %v", err)
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return ", " + err.Error()
}
