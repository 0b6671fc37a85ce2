package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// joined reads files one behind another. One of them is open at a time; it belongs to one goroutine.
type joined struct {
	open   func(f *release.File) (File, error)
	files  []*release.File
	starts []int64
	now    File
	at     int // number of the one that is open
}

func (j *joined) ReadAt(b []byte, off int64) (n int, err error) {
	for n < len(b) {
		i, found := slices.BinarySearch(j.starts, off+int64(n))
		if !found {
			i--
		}
		if i < 0 || i >= len(j.files) {
			return n, io.EOF
		}
		within := off + int64(n) - j.starts[i]
		left := j.files[i].Size - within
		if left <= 0 {
			return n, io.EOF
		}
		if err := j.use(i); err != nil {
			return n, err
		}
		part := b[n:min(int64(len(b)), int64(n)+left)]
		k, err := j.now.ReadAt(part, within)
		if n += k; k < len(part) {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return n, err
		}
	}
	return n, nil
}

func (j *joined) use(i int) error {
	if j.now != nil && j.at == i {
		return nil
	}
	j.close()
	f, err := j.open(j.files[i])
	if err != nil {
		return err
	}
	j.now, j.at = f, i
	return nil
}

func (j *joined) close() {
	if j.now != nil {
		j.now.Close()
		j.now = nil
	}
}

// splitter is a writer that cuts what it gets into files.
type splitter struct {
	files []*release.File // that are not begun yet
	keep  func(f *release.File) (io.WriteCloser, error)
	now   io.WriteCloser
	left  int64 // of the one that is being written
}

func (s *splitter) Write(b []byte) (n int, err error) {
	for n < len(b) {
		if s.now == nil {
			if len(s.files) == 0 {
				return n, malformed("more comes out of it than its files have")
			}
			if s.now, err = s.keep(s.files[0]); err != nil {
				s.now = nil
				return n, err
			}
			s.left, s.files = s.files[0].Size, s.files[1:]
		}
		k, err := s.now.Write(b[n:min(int64(len(b)), int64(n)+s.left)])
		n += k
		if err != nil {
			return n, err
		}
		if s.left -= int64(k); s.left == 0 {
			if err := s.end(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

func (s *splitter) end() error {
	now := s.now
	s.now = nil
	return now.Close()
}

func (s *splitter) abandon() {
	if s.now != nil {
		s.end()
	}
}

func decodeStrict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows it")
	}
	return nil
}
