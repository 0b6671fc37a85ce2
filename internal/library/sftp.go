package library

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"time"

	"github.com/pkg/sftp"
)

// far is a folder of another machine.
type far struct {
	client *sftp.Client
	base   string
	closer io.Closer
}

// Over opens a folder of another machine, which is made if it is not there; a relative one is in the user's home. Closing it closes
// the client, and then what else there is to close.
func Over(client *sftp.Client, base string, closer io.Closer) (Folder, error) {
	if err := client.MkdirAll(base); err != nil {
		return nil, fmt.Errorf("make %s there: %w", base, err)
	}
	return far{client, base, closer}, nil
}

func (f far) Far() bool { return true }

func (f far) Close() error { return errors.Join(f.client.Close(), f.closer.Close()) }

func (f far) path(name string) string { return path.Join(f.base, name) }

func (f far) Open(name string) (File, int64, error) {
	h, err := f.client.Open(f.path(name))
	if err != nil {
		return nil, 0, err
	}
	fi, err := h.Stat()
	if err != nil {
		h.Close()
		return nil, 0, err
	}
	return h, fi.Size(), nil
}

func (f far) Create(name string, r io.Reader) (err error) {
	temp := f.path(path.Join(path.Dir(name), tempPrefix+rand.Text()))
	h, err := f.client.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil { // most often the directory is there
		if err := f.client.MkdirAll(path.Dir(temp)); err != nil {
			return err
		}
		if h, err = f.client.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL); err != nil {
			return err
		}
	}
	_, err = h.ReadFrom(r)
	if err = errors.Join(err, h.Chmod(0o600), h.Close()); err == nil {
		err = f.client.PosixRename(temp, f.path(name))
	}
	if err != nil {
		f.client.Remove(temp)
	}
	return err
}

func (f far) List(name string) ([]Entry, error) {
	infos, err := f.client.ReadDir(f.path(name))
	var list []Entry
	for _, fi := range infos {
		list = append(list, Entry{fi.Name(), fi.Size(), fi.ModTime()})
	}
	return list, err
}

func (f far) Remove(name string) error { return f.client.Remove(f.path(name)) }

func (f far) Touch(name string) error {
	now := time.Now()
	return f.client.Chtimes(f.path(name), now, now)
}
