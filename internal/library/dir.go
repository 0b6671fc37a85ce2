package library

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"
)

// dir is a folder of this machine.
type dir struct{ root *os.Root }

// Dir opens a folder of this machine, and makes it if it is not there. Nobody else may read it: a release may hold secrets.
func Dir(name string) (Folder, error) {
	if err := os.MkdirAll(name, 0o700); err != nil {
		return nil, fmt.Errorf("open the releases that are kept: %w", err)
	}
	root, err := os.OpenRoot(name)
	if err != nil {
		return nil, fmt.Errorf("open the releases that are kept: %w", err)
	}
	return dir{root}, nil
}

// UsualDir is where a library lies unless somebody says otherwise: $XDG_CACHE_HOME/hotdeploy.
func UsualDir() (string, error) {
	cache := os.Getenv("XDG_CACHE_HOME")
	if !filepath.IsAbs(cache) {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("where to keep releases: %w", err)
		}
		cache = filepath.Join(home, ".cache")
	}
	return filepath.Join(cache, "hotdeploy"), nil
}

func (d dir) Far() bool    { return false }
func (d dir) Close() error { return d.root.Close() }

func (d dir) Open(name string) (File, int64, error) {
	f, err := d.root.Open(name)
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", name)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, fi.Size(), nil
}

// Create does not sync: what a power cut takes is noticed by its digest.
func (d dir) Create(name string, r io.Reader) (err error) {
	if err := d.root.MkdirAll(path.Dir(name), 0o700); err != nil {
		return err
	}
	temp := path.Join(path.Dir(name), tempPrefix+rand.Text())
	f, err := d.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err = errors.Join(err, f.Close()); err == nil {
		err = d.root.Rename(temp, name)
	}
	if err != nil {
		d.root.Remove(temp)
	}
	return err
}

func (d dir) List(name string) ([]Entry, error) {
	f, err := d.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries, err := f.ReadDir(-1)
	var list []Entry
	for _, e := range entries {
		fi, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) { // removed since
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, Entry{e.Name(), fi.Size(), fi.ModTime()})
	}
	return list, err
}

func (d dir) Remove(name string) error { return d.root.Remove(name) }

func (d dir) Touch(name string) error {
	now := time.Now()
	return d.root.Chtimes(name, now, now)
}
