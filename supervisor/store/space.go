package store

import (
	"errors"
	"fmt"
	"io"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// What is left free on the disk for the app, the logs and the supervisor's state: the smaller of the two.
const (
	reserveBytes   = 64 << 20
	reserveDivisor = 50 // of the disk: 2%
)

// workers is how many files Complete works on at the same time.
const workers = 4

// need is what a release will take on the disk, besides what has arrived.
type need struct{ bytes, files int64 }

// need adds up what is still to come and what Complete will copy. Each size is rounded up to 4 KiB, which is what a file takes
// on most disks.
func (s *Store) need(m *release.Manifest, manifestBytes int, blobs []*blob, missing []api.Blob, f Facts) need {
	const block = 4096
	onDisk := func(n int64) int64 { return (n + block - 1) / block * block }
	n := need{files: int64(len(m.Files) + len(parents(m)) + len(missing) + 8)}
	for _, b := range missing {
		n.bytes += onDisk(b.Size - b.Offset)
	}
	var parts []int64
	for _, b := range blobs {
		n.bytes += (b.modes() - 1) * onDisk(b.size)
		switch {
		case len(b.sources) == 0:
			parts = append(parts, onDisk(b.size))
		case b.sourcesFor(finalMode(b.files[0]))[0].mode != finalMode(b.files[0]):
			n.bytes += onDisk(b.size)
		}
	}
	// How large a bundle is nobody knows yet, and mostly it is small: see room.
	if !f.SameUser && !f.Bundle {
		// Another user's parts are copied, and each goes as soon as its copy is there.
		slices.Sort(parts)
		for _, size := range parts[max(0, len(parts)-workers):] {
			n.bytes += size
		}
	}
	n.bytes += int64(len(parents(m)))*block + 2*onDisk(int64(manifestBytes)) // one here, one in incoming/
	return n
}

// parents lists the directories of a release, those above before those below.
func parents(m *release.Manifest) []string {
	seen := map[string]bool{}
	var list []string
	add := func(p string) {
		var missing []string
		for d := path.Dir(p); d != "." && !seen[d]; d = path.Dir(d) {
			seen[d] = true
			missing = append(missing, d)
		}
		slices.Reverse(missing)
		list = append(list, missing...)
	}
	for i := range m.Files {
		add(m.Files[i].Path)
	}
	for _, p := range m.Spec.Run.Shared {
		add(p)
	}
	return list
}

// makeSpace is checkSpace. Where there is too little, the bundles go that nobody sends.
func (s *Store) makeSpace(n need) error {
	err := s.checkSpace(n)
	if errors.Is(err, api.ErrDiskSpace) && s.dropAllIdle() {
		err = s.checkSpace(n)
	}
	return err
}

// checkSpace refuses what would fill the disk, before anything is sent.
func (s *Store) checkSpace(n need) error {
	var st unix.Statfs_t
	d, err := s.root.Open(".")
	if err != nil {
		return fmt.Errorf("look at the disk: %w", err)
	}
	defer d.Close()
	if err := onFD(d, func(fd int) error { return unix.Fstatfs(fd, &st) }); err != nil {
		return fmt.Errorf("look at the disk: %w", err)
	}
	unit := st.Frsize
	if unit == 0 {
		unit = st.Bsize
	}
	free, size := int64(st.Bavail)*unit, int64(st.Blocks)*unit
	reserve := min(reserveBytes, size/reserveDivisor)
	const hint = "make room, or keep fewer releases: [releases] keep in hotdeploy.toml"
	if n.bytes+reserve > free {
		return refuse(api.ErrDiskSpace, hint, "no room in %s: the release needs %s and %s stay free, of %s that are free now",
			s.dir, human(n.bytes), human(reserve), human(free))
	}
	if st.Files > 0 && n.files > int64(st.Ffree) { // no count: a file system without a limit
		return refuse(api.ErrDiskSpace, hint, "no room in %s: the release needs %d files, the disk has room for %d more",
			s.dir, n.files, st.Ffree)
	}
	return nil
}

// roomEvery is how much is written between two looks at the disk.
const roomEvery = 4 << 20

// room keeps what is written of a bundle, and made of it, from filling the disk. It belongs to one goroutine.
type room struct {
	store *Store
	since int
}

func (s *Store) newRoom() *room { return &room{store: s} }

func (r *room) wrote(n int) error {
	if r.since += n; r.since < roomEvery {
		return nil
	}
	r.since = 0
	return r.store.makeSpace(need{})
}

// roomy is a writer that stops before the disk is full.
type roomy struct {
	*room
	w io.Writer
}

func (r roomy) Write(b []byte) (int, error) {
	n, err := r.w.Write(b)
	return n, errors.Join(err, r.wrote(n))
}

// explain makes a full disk or quota what callers branch on. What is an [api.Error] already stays it.
func (s *Store) explain(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return refuse(api.ErrDiskSpace, "make room on the host", "no room in %s: %v", s.dir, err)
	}
	return err
}

func human(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/unit, 0
	for ; f >= unit && i < 3; i++ {
		f /= unit
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGT"[i])
}
