package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// parts are contents that are made of a bundle. They get their names together, when all are there: what to send of a release depends on
// what is there of it, and a bundle that was cut goes on only if that is as it was.
type parts struct {
	dir  *os.Root
	room *room
	made map[string]string // temporary name of each digest
}

func (s *Store) newParts(dir *os.Root) *parts { return &parts{dir, s.newRoom(), map[string]string{}} }

// keep begins a part. When it is closed it must be what its name says; else errWrong.
func (p *parts) keep(f *release.File) (io.WriteCloser, error) {
	temp := tempName()
	h, err := p.dir.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return &partWriter{h, p, temp, f, sha256.New()}, nil
}

// commit gives all parts their names.
func (p *parts) commit() error {
	step("parts")
	for sha, temp := range p.made {
		if err := p.dir.Rename(temp, sha); err != nil {
			return err
		}
		delete(p.made, sha)
	}
	return nil
}

// drop removes what has no name yet.
func (p *parts) drop() {
	for _, temp := range p.made {
		p.dir.Remove(temp)
	}
	clear(p.made)
}

type partWriter struct {
	file  *os.File
	parts *parts
	temp  string
	of    *release.File
	sum   hash.Hash
}

func (w *partWriter) Write(b []byte) (int, error) {
	w.sum.Write(b)
	n, err := w.file.Write(b)
	return n, errors.Join(err, w.parts.room.wrote(n))
}

func (w *partWriter) Close() error {
	err := w.file.Close()
	if err == nil && hex.EncodeToString(w.sum.Sum(nil)) != w.of.SHA256 {
		err = fmt.Errorf("%s: %w", release.Shown(w.of.Path), errWrong)
	}
	if err != nil || w.parts.made[w.of.SHA256] != "" { // a bundle may name a content twice
		w.parts.dir.Remove(w.temp)
		return err
	}
	w.parts.made[w.of.SHA256] = w.temp
	return nil
}
