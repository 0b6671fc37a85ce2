package systemd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

const maxOwnFile = 1 << 20

// readOwn reads a file in a folder of root's that may be ours. A link or
// anything else that is not a plain file is ErrForeign.
func readOwn(path string) ([]byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxOwnFile {
		return nil, fmt.Errorf("%s is not a plain small file: %w", path, ErrForeign)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxOwnFile))
}

// writeOwn makes path hold text with that mode, and says "created", "updated",
// or "" where it did already. A reader, and a power cut, sees all of the old
// file or all of the new one.
func writeOwn(path string, text []byte, mode fs.FileMode) (verb string, err error) {
	old, err := readOwn(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		verb = "created"
	case err != nil:
		return "", err
	case !bytes.Equal(old, text):
		verb = "updated"
	default:
		return ensureMode(path, mode)
	}
	if err := replaceFile(path, text, mode); err != nil {
		return "", fmt.Errorf("write %s: %w", path, err)
	}
	return verb, nil
}

func ensureMode(path string, mode fs.FileMode) (verb string, err error) {
	info, err := os.Lstat(path)
	if err != nil || info.Mode() == mode {
		return "", err
	}
	return "changed the mode of", os.Chmod(path, mode)
}

func replaceFile(path string, text []byte, mode fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // systemd reads no hidden files
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	_, err = tmp.Write(text)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
