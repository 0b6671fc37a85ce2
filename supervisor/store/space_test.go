package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

// The disk is really full here: a small tmpfs that only the child sees.

func onSmallDisk(t *testing.T, child, options string) {
	t.Helper()
	if os.Geteuid() != 0 {
		cannot(t, "only root can mount a small disk")
	}
	cmd := childCommand(t, child, "", t.TempDir(), options)
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNS
	if out, err := cmd.CombinedOutput(); err != nil {
		if strings.Contains(string(out), "cannot mount") || len(out) == 0 {
			cannot(t, "%v: %s", err, out)
		}
		t.Fatalf("%v: %s", err, out)
	}
}

func smallDisk(args []string) (*Store, error) {
	err := errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("tmpfs", args[0], "tmpfs", 0, args[1]),
	)
	if err != nil {
		return nil, fmt.Errorf("cannot mount: %w", err)
	}
	return Open(args[0], "chat")
}

func TestNoRoomOnTheDisk_ToldBeforeTheUpload(t *testing.T) { onSmallDisk(t, "no room", "size=8m") }

func TestNoRoomForManyFiles_ToldBeforeTheUpload(t *testing.T) {
	onSmallDisk(t, "no inodes", "size=64m,nr_inodes=200")
}

func TestTheDiskFillsUpMeanwhile_NothingHalfIsLeftAndItGoesOnOnceThereIsRoom(t *testing.T) {
	onSmallDisk(t, "fills up", "size=16m")
}

func init() {
	children["no room"] = func(args []string) error {
		s, err := smallDisk(args)
		if err != nil {
			return err
		}
		_, raw, digest := sized("1", 6<<20).manifest(childT{})
		_, err = s.Plan(childT{}.Context(), raw, here)
		if !errors.Is(err, api.ErrDiskSpace) || !strings.Contains(err.Error(), "needs 12.0 MiB") || !strings.Contains(err.Error(), "8.0 MiB that are free") {
			return fmt.Errorf("part and copy do not fit: %w", err)
		}
		if exists(filepath.Join(s.Dir(), "incoming", digest)) {
			return errors.New("an upload was begun")
		}
		alone := here
		alone.SameUser = true
		if _, err := s.Plan(childT{}.Context(), raw, alone); err != nil {
			return fmt.Errorf("without a copy it fits: %w", err)
		}
		push(childT{}, s, sized("2", 2<<20-64<<10))
		if _, err := s.Plan(childT{}.Context(), raw, alone); !errors.Is(err, api.ErrDiskSpace) {
			return fmt.Errorf("the reserve is not kept: %w", err)
		}
		push(childT{}, s, app{version: "3", files: sized("2", 2<<20-64<<10).files}) // what is there already takes nothing
		return s.Close()
	}
	children["no inodes"] = func(args []string) error {
		s, err := smallDisk(args)
		if err != nil {
			return err
		}
		many := app{version: "1", files: map[string]string{}}
		for i := range 300 {
			many.files[fmt.Sprint("d/", i)] = fmt.Sprint(i)
		}
		_, raw, _ := many.manifest(childT{})
		if _, err := s.Plan(childT{}.Context(), raw, here); !errors.Is(err, api.ErrDiskSpace) || !strings.Contains(err.Error(), "files") {
			return fmt.Errorf("got %w", err)
		}
		return s.Close()
	}
	children["fills up"] = func(args []string) error {
		s, err := smallDisk(args)
		if err != nil {
			return err
		}
		a := sized("1", 4<<20)
		digest := send(childT{}, s, a)
		p := part(s, digest, a.files["big"])
		if err := errors.Join(os.Chown(p, 12345, 12345), s.SaveState(State{NextGeneration: 5}), s.AppendHistory(api.Upgrade{ID: "old"})); err != nil {
			return err
		}
		filler := filepath.Join(s.Dir(), "shared", "filler")
		if err := fill(filler); err != nil {
			return err
		}
		if _, err := s.Complete(childT{}.Context(), digest); !errors.Is(err, api.ErrDiskSpace) {
			return fmt.Errorf("complete: %w", err)
		}
		if left, _ := filepath.Glob(filepath.Join(s.Dir(), "releases", "*")); len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		if err := s.AppendHistory(api.Upgrade{ID: "new", By: strings.Repeat("x", 8192)}); !errors.Is(err, api.ErrDiskSpace) {
			return fmt.Errorf("history: %w", err)
		}
		if err := s.SaveState(State{NextGeneration: 6}); !errors.Is(err, api.ErrDiskSpace) {
			return fmt.Errorf("state: %w", err)
		}
		if st, err := s.LoadState(); err != nil || st.NextGeneration != 5 {
			return fmt.Errorf("the state is not the old one: %+v, %w", st, err)
		}
		if list, err := s.History(10); err != nil || len(list) != 1 {
			return fmt.Errorf("the history is not the old one: %v, %w", list, err)
		}
		if err := os.Remove(filler); err != nil {
			return err
		}
		push(childT{}, s, a)
		whole(childT{}, s, "1")
		if err := s.AppendHistory(api.Upgrade{ID: "new"}); err != nil {
			return err
		}
		return s.Close()
	}
}

func sized(version string, size int) app {
	return app{version: version, files: map[string]string{"big": strings.Repeat(version, size)}}
}

// fill writes until nothing fits any more.
func fill(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, unix.ENOSPC) {
			size /= 2
		} else if err != nil {
			return err
		}
	}
	return nil
}
