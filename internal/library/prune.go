package library

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"
)

// Limits are what [Library.Prune] keeps.
type Limits struct {
	Age   time.Duration // since a release was last used
	Bytes int64         // of all contents together
}

// Usual is what is kept where nobody said otherwise.
var Usual = Limits{Age: 60 * 24 * time.Hour, Bytes: 5 << 30}

const (
	prunedName = "pruned" // its time is when it was done last
	pruneEvery = 24 * time.Hour
)

// PruneDaily is Prune, if that was not done for a day: it reads all manifests.
func (l *Library) PruneDaily(now time.Time, keep Limits) error {
	entries, err := l.folder.List(".")
	if err != nil {
		return fmt.Errorf("list what is kept: %w", err)
	}
	for _, e := range entries {
		if e.Name == prunedName && now.Sub(e.Time) < pruneEvery {
			return nil
		}
	}
	if err := l.Prune(now, keep); err != nil {
		return err
	}
	return l.folder.Create(prunedName, strings.NewReader(""))
}

// Prune removes the releases that were not used for long, and of the others those that were used last too long ago for all to
// have room; the one used last stays. Then it removes the contents that no release has.
//
// Of a manifest of a newer format only its age is known, not its contents: while there is one that is not too old, all contents stay, whatever
// room they take. If a manifest cannot be read now, no content is removed either, and it is an error.
func (l *Library) Prune(now time.Time, keep Limits) error {
	list, strange, err := l.list()
	if err != nil {
		return err
	}
	used, total := map[string]bool{}, int64(0)
	for i, info := range list {
		m, _, err := l.Manifest(info.Digest)
		if errors.Is(err, fs.ErrNotExist) { // somebody else prunes
			continue
		}
		if err != nil {
			return err
		}
		var more []string
		for k := range m.Files {
			if f := &m.Files[k]; f.Link == "" && f.Size > 0 && !used[f.SHA256] {
				used[f.SHA256] = true
				more = append(more, f.SHA256)
				total += f.Size
			}
		}
		if i > 0 && (now.Sub(info.Used) > keep.Age || total > keep.Bytes) {
			for _, sha := range more {
				delete(used, sha)
			}
			if err := l.remove(path.Join(releasesDir, info.Digest)); err != nil {
				return err
			}
		}
	}
	unknown := false
	for _, e := range strange {
		if now.Sub(e.Time) <= keep.Age {
			unknown = true
		} else if err := l.remove(path.Join(releasesDir, e.Name)); err != nil {
			return err
		}
	}
	return l.sweep(now, func(sha string) bool { return unknown || used[sha] })
}

func (l *Library) remove(name string) error {
	if err := l.folder.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

// sweep removes what nobody uses. What is young may belong to a release whose manifest is not there yet.
func (l *Library) sweep(now time.Time, used func(sha string) bool) error {
	dirs, err := l.folder.List(contentsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list the contents: %w", err)
	}
	for _, dir := range append(dirs, Entry{Name: path.Join("..", releasesDir)}) {
		in := path.Join(contentsDir, dir.Name)
		files, err := l.folder.List(in)
		if err != nil {
			continue
		}
		for _, f := range files {
			leftover := strings.HasPrefix(f.Name, tempPrefix)
			if now.Sub(f.Time) > young && (leftover || in != releasesDir && !used(f.Name)) {
				if err := l.remove(path.Join(in, f.Name)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
