package systemd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// folder is one of those below a service's root. The service owns them all.
type folder struct {
	name string
	mode fs.FileMode
}

// envFile holds secrets: it is for the service alone, and its contents are
// never touched.
const envFile = "env"

var folders = []folder{
	{".", 0o750},
	{"releases", 0o750},
	{"incoming", 0o770 | fs.ModeSetgid}, // members of the group upload, what they make stays the group's
	{"shared", 0o750},
	{"state", 0o700},
	{tmpFolder, 0o700}, // the service's /tmp
}

// checkRootFolder refuses a root that is somebody else's, and one that
// somebody else could move away under our hands.
func checkRootFolder(root string, uid int, uidKnown bool) error {
	if err := checkAncestors(filepath.Dir(root)); err != nil {
		return fmt.Errorf("root %s: %w", root, err)
	}
	info, err := os.Lstat(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	switch owner := ownerOf(info); {
	case !info.IsDir():
		return fmt.Errorf("root %s: not a folder: %w", root, ErrForeign)
	case uidKnown && owner == uid:
		return nil
	case owner != 0:
		return fmt.Errorf("root %s belongs to user %d: %w", root, owner, ErrForeign)
	}
	return checkVacant(root)
}

// checkAncestors: a folder in which others may rename things is no place to
// make folders as root.
func checkAncestors(dir string) error {
	for ; ; dir = filepath.Dir(dir) {
		info, err := os.Lstat(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		case !info.IsDir():
			return fmt.Errorf("%s is a link or a file; write the path without it", dir)
		case ownerOf(info) != 0 || info.Mode()&0o022 != 0:
			return fmt.Errorf("%s can be changed by others than root", dir)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// checkVacant lets root's own folder through if nothing is in it but what we
// put there ourselves, or mkfs did.
func checkVacant(root string) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		known := slices.ContainsFunc(folders, func(f folder) bool { return f.name == e.Name() })
		if !known && !slices.Contains([]string{envFile, "current", "lost+found"}, e.Name()) {
			return fmt.Errorf("root %s holds other things (%s): %w", root, e.Name(), ErrForeign)
		}
	}
	return nil
}

func ownerOf(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}

func (s *setup) makeFolders(context.Context) error {
	changes, err := makeFolders(s.spec.Root, s.user.uid, s.group.gid)
	s.report.Changes = append(s.report.Changes, changes...)
	return err
}

// makeFolders works as root in a folder where the service may put anything
// at any time, a link to /etc for example. So everything goes through open
// descriptors below an os.Root, and nothing but real folders and files is
// touched.
func makeFolders(root string, uid, gid int) (changes []string, err error) {
	if err := os.MkdirAll(filepath.Dir(root), 0o755); err != nil {
		return nil, err
	}
	if err := os.Mkdir(root, 0o700); err == nil {
		changes = append(changes, "created "+root)
	} else if !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	r, err := os.OpenRoot(root)
	if err != nil {
		return changes, err
	}
	defer r.Close()
	fresh := len(changes) > 0
	for _, f := range folders {
		lines, err := ensureFolder(r, f, uid, gid, fresh)
		changes = append(changes, lines...)
		if err != nil {
			return changes, fmt.Errorf("folder %s: %w", filepath.Join(root, f.name), err)
		}
	}
	lines, err := ensureEnv(r, uid, gid)
	if err != nil {
		err = fmt.Errorf("file %s: %w", filepath.Join(root, envFile), err)
	}
	return append(changes, lines...), err
}

func ensureFolder(r *os.Root, f folder, uid, gid int, fresh bool) (changes []string, err error) {
	path := filepath.Join(r.Name(), f.name)
	made := fresh && f.name == "."
	if err := r.Mkdir(f.name, 0o700); err == nil {
		made = true
		changes = append(changes, "created "+path)
	} else if !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	file, err := openReal(r, f.name, fs.ModeDir)
	if err != nil {
		return changes, err
	}
	defer file.Close()
	lines, err := ensureOwner(file, path, uid, gid, f.mode)
	if !made {
		changes = append(changes, lines...)
	}
	return changes, err
}

func ensureEnv(r *os.Root, uid, gid int) (changes []string, err error) {
	path := filepath.Join(r.Name(), envFile)
	file, err := r.OpenFile(envFile, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	made := err == nil
	if errors.Is(err, fs.ErrExist) {
		file, err = openReal(r, envFile, 0)
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if made {
		changes = append(changes, "created "+path)
	}
	lines, err := ensureOwner(file, path, uid, gid, 0o600)
	if !made {
		changes = append(changes, lines...)
	}
	return changes, err
}

// openReal opens a folder or file that is what it says: no link, neither a
// soft nor a hard one, which would lead to somebody else's file, and not a
// pipe, which would make us wait.
func openReal(r *os.Root, name string, kind fs.FileMode) (*os.File, error) {
	seen, err := r.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !isReal(seen, kind) {
		return nil, fmt.Errorf("%w: it is a link or something odd", ErrForeign)
	}
	file, err := r.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if got, err := file.Stat(); err != nil || !os.SameFile(seen, got) || !isReal(got, kind) {
		file.Close()
		return nil, fmt.Errorf("%w: it changes while we look", ErrForeign)
	}
	return file, nil
}

func isReal(info fs.FileInfo, kind fs.FileMode) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && info.Mode().Type() == kind && (kind == fs.ModeDir || st.Nlink == 1)
}

// ensureOwner: the owner first, since chown may clear mode bits.
func ensureOwner(file *os.File, path string, uid, gid int, mode fs.FileMode) (changes []string, err error) {
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, errors.New("no owner")
	}
	if int(st.Uid) != uid || int(st.Gid) != gid {
		if err := file.Chown(uid, gid); err != nil {
			return nil, err
		}
		changes = append(changes, fmt.Sprintf("changed the owner of %s from %d:%d to %d:%d", path, st.Uid, st.Gid, uid, gid))
	}
	const bits = fs.ModePerm | fs.ModeSetgid | fs.ModeSetuid | fs.ModeSticky
	if old := info.Mode() & bits; old != mode {
		if err := file.Chmod(mode); err != nil {
			return changes, err
		}
		changes = append(changes, fmt.Sprintf("changed the mode of %s from %v to %v", path, old, mode))
	} else if len(changes) > 0 {
		err = file.Chmod(mode)
	}
	return changes, err
}
