package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

// maxHistory is how many entries [Store.History] returns at most.
const maxHistory = 1000

// The log is cut to its newest keptHistory bytes when it has grown to maxHistoryBytes: some thousand entries remain.
const (
	maxHistoryBytes = 8 << 20
	keptHistory     = 4 << 20
)

// AppendHistory adds an upgrade to the log. When it returns nil the entry is on the disk. An output that makes the entry too
// long is left out.
func (s *Store) AppendHistory(u api.Upgrade) error {
	line, err := historyLine(u)
	if err == nil {
		err = s.appendLine(line)
	}
	if err != nil {
		return s.explain(fmt.Errorf("write %s: %w", s.path(historyFile), err))
	}
	return nil
}

func historyLine(u api.Upgrade) ([]byte, error) {
	line, err := json.Marshal(u)
	if err == nil && len(line) >= maxLineBytes && u.Error != nil {
		short := *u.Error
		short.Output = []string{"(too long to be kept)"}
		u.Error = &short
		line, err = json.Marshal(u)
	}
	if err == nil && len(line) >= maxLineBytes {
		err = fmt.Errorf("the entry %s has %d bytes, more than the %d allowed", u.ID, len(line), maxLineBytes)
	}
	return append(line, '\n'), err
}

// appendLine writes line at the end, or nothing: a line that did not fit on the disk is taken back.
func (s *Store) appendLine(line []byte) (err error) {
	s.history.Lock()
	defer s.history.Unlock()
	_, err = s.root.Lstat(historyFile)
	isNew := errors.Is(err, fs.ErrNotExist)
	f, err := s.root.OpenFile(historyFile, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := repairTail(f)
	if err != nil {
		return err
	}
	if size+int64(len(line)) > maxHistoryBytes {
		return s.cutHistory(f, size, line)
	}
	step("append")
	if _, err := f.Write(line); err != nil {
		return errors.Join(err, f.Truncate(size))
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if isNew {
		return syncPath(s.root, stateDir)
	}
	return nil
}

// cutHistory replaces the log, at once and for good, by its newest entries and line.
func (s *Store) cutHistory(f *os.File, size int64, line []byte) error {
	kept := make([]byte, keptHistory)
	if _, err := f.ReadAt(kept, size-keptHistory); err != nil {
		return err
	}
	kept = kept[bytes.IndexByte(kept, '\n')+1:] // of the first line there is only the end
	return writeFile(s.root, historyFile, append(kept, line...), 0o600)
}

// repairTail makes the log end with a whole line and returns its size then. What a power cut or a full disk left of a line is
// cut off; a line that lacks nothing but its end gets it.
func repairTail(f *os.File) (int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	size := fi.Size()
	whole, err := lastNewline(f, size)
	if err != nil || whole == size {
		return size, err
	}
	if tail := size - whole; tail < maxLineBytes {
		line := make([]byte, tail)
		if _, err := f.ReadAt(line, whole); err != nil {
			return 0, err
		}
		if decodeLine(line) != nil {
			_, err := f.Write([]byte{'\n'})
			return size + 1, err
		}
	}
	return whole, f.Truncate(whole)
}

// lastNewline returns the offset after the last newline before end, 0 if there is none.
func lastNewline(r io.ReaderAt, end int64) (int64, error) {
	buf := make([]byte, 4096)
	for end > 0 {
		n := min(end, int64(len(buf)))
		if _, err := r.ReadAt(buf[:n], end-n); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			return end - n + int64(i) + 1, nil
		}
		end -= n
	}
	return 0, nil
}

// decodeLine returns nil for what is no entry.
func decodeLine(line []byte) *api.Upgrade {
	u := new(api.Upgrade)
	if json.Unmarshal(line, u) != nil || u.ID == "" {
		return nil
	}
	return u
}

// History returns the newest n upgrades of the log, at most 1,000, the newest first. Lines that cannot be read are left out.
func (s *Store) History(n int) ([]api.Upgrade, error) {
	n = min(n, maxHistory)
	var list []api.Upgrade
	if n <= 0 {
		return nil, nil
	}
	err := s.eachUpgrade(nil, func(u *api.Upgrade) bool {
		list = append(list, *u)
		return len(list) < n
	})
	return list, err
}

// FindUpgrade returns the newest entry of the log with that id, or [api.ErrNotFound].
func (s *Store) FindUpgrade(id string) (api.Upgrade, error) {
	var found *api.Upgrade
	quoted, err := json.Marshal(id)
	if err != nil {
		return api.Upgrade{}, fmt.Errorf("find the upgrade %q: %w", id, err)
	}
	err = s.eachUpgrade(quoted, func(u *api.Upgrade) bool {
		if u.ID == id {
			found = u
		}
		return found == nil
	})
	if err != nil {
		return api.Upgrade{}, err
	}
	if found == nil {
		return api.Upgrade{}, refuse(api.ErrNotFound, "", "there is no upgrade %q", id)
	}
	return *found, nil
}

// eachUpgrade calls fn for the entries of the log that contain these bytes, from the newest to the oldest, until it
// returns false.
func (s *Store) eachUpgrade(containing []byte, fn func(*api.Upgrade) bool) error {
	f, fi, err := openRegular(s.root, historyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the history: %w", err)
	}
	defer f.Close()
	err = backwards(f, fi.Size(), maxLineBytes, func(line []byte) bool {
		if !bytes.Contains(line, containing) {
			return true
		}
		u := decodeLine(line)
		return u == nil || fn(u)
	})
	if err != nil {
		return fmt.Errorf("read %s: %w", s.path(historyFile), err)
	}
	return nil
}

// backwards calls fn for the lines before end, the last first, until it returns false. What follows the last newline is
// no line yet. Lines of most bytes and more are left out. line is valid until fn returns.
func backwards(r io.ReaderAt, end int64, most int, fn func(line []byte) bool) error {
	end, err := lastNewline(r, end)
	if err != nil {
		return err
	}
	buf := make([]byte, most+1) // a line, its newline and the newline before it
	for end > 0 {
		n := min(end, int64(len(buf)))
		if _, err := r.ReadAt(buf[:n], end-n); err != nil {
			return err
		}
		chunk := buf[:n] // it ends with the newline of the next line to give
		for {
			start := bytes.LastIndexByte(chunk[:len(chunk)-1], '\n') + 1
			if start == 0 && end > int64(len(chunk)) {
				break // that line may begin before the chunk
			}
			if line := chunk[start : len(chunk)-1]; len(line) < most && !fn(line) {
				return nil
			}
			end -= int64(len(chunk) - start)
			if chunk = chunk[:start]; len(chunk) == 0 {
				break
			}
		}
		if len(chunk) == len(buf) { // a line that is longer
			if end, err = lastNewline(r, end-1); err != nil {
				return err
			}
		}
	}
	return nil
}
