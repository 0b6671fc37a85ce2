package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	lockDir  = "/run/hotdeploy-lab" // also in lab.sh; by host, like the names it guards
	maxSlots = 200
)

// slot is a number that no other lab on this host has, and the names that follow from it.
// It is held by a lock on a file, which names the lab's directory as long as the lab exists:
// a file that names a directory and is not locked is a lab whose owner died.
type slot struct {
	n    int
	lock *os.File
	dir  string
}

func rootDir() string {
	if d := os.Getenv("LAB_ROOT"); d != "" {
		return d
	}
	return "/var/tmp/hotdeploy-lab"
}

// environ is what lab.sh needs to know which lab is meant.
func (s *slot) environ() []string {
	return append(os.Environ(), "LAB_DIR="+s.dir, "LAB_NET="+s.net(), "LAB_SUBNET="+s.subnet(), "LAB_ROOT="+rootDir())
}

func (s *slot) net() string    { return "hdlab" + strconv.Itoa(s.n) }
func (s *slot) subnet() string { return "10.77." + strconv.Itoa(s.n) }

// takeSlot locks the first free slot, after it has removed all labs without an owner.
func takeSlot(ctx context.Context, script string) (*slot, error) {
	if err := os.MkdirAll(lockDir, 0o755); err != nil {
		return nil, fmt.Errorf("lock directory of labs: %w", err)
	}
	if err := removeStale(ctx, script); err != nil {
		return nil, err
	}
	for n := 1; n <= maxSlots; n++ {
		s, err := lockSlot(n)
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := s.claim(); err != nil {
			s.lock.Close()
			return nil, err
		}
		return s, nil
	}
	return nil, fmt.Errorf("all %d labs of this host are in use (%s)", maxSlots, lockDir)
}

// removeStale destroys the labs whose owner is gone.
func removeStale(ctx context.Context, script string) error {
	locks, err := filepath.Glob(filepath.Join(lockDir, "slot-*.lock"))
	if err != nil {
		return err
	}
	for _, path := range locks {
		n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), "slot-"), ".lock"))
		if err != nil {
			continue
		}
		s, err := lockSlot(n)
		if err != nil {
			continue // in use
		}
		if s.dir != "" {
			err = s.destroy(ctx, script)
		}
		s.lock.Close()
		if err != nil {
			return fmt.Errorf("remove the lab that a dead process left in %s: %w", path, err)
		}
	}
	return nil
}

func lockSlot(n int) (*slot, error) {
	path := filepath.Join(lockDir, fmt.Sprintf("slot-%d.lock", n))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock of lab %d: %w", n, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock of lab %d: %w", n, err)
	}
	dir, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock of lab %d: %w", n, err)
	}
	return &slot{n: n, lock: f, dir: string(dir)}, nil
}

// claim writes down where the lab is, before anything of it exists.
func (s *slot) claim() error {
	s.dir = filepath.Join(rootDir(), fmt.Sprintf("slot-%d", s.n))
	if err := s.lock.Truncate(0); err != nil {
		return fmt.Errorf("claim lab %d: %w", s.n, err)
	}
	if _, err := s.lock.WriteAt([]byte(s.dir), 0); err != nil {
		return fmt.Errorf("claim lab %d: %w", s.n, err)
	}
	return nil
}

// destroy ends whatever there is of the lab; afterwards the slot names no lab.
func (s *slot) destroy(ctx context.Context, script string) error {
	cmd := exec.CommandContext(ctx, script, "destroy")
	cmd.Env = s.environ()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("destroy lab %d: %w: %s", s.n, err, strings.TrimSpace(string(out)))
	}
	if err := os.RemoveAll(s.dir); err != nil {
		return fmt.Errorf("destroy lab %d: %w", s.n, err)
	}
	if err := s.lock.Truncate(0); err != nil {
		return fmt.Errorf("destroy lab %d: %w", s.n, err)
	}
	return nil
}

// guard starts a process that waits for our lock, which it gets when this process is gone,
// and then destroys the lab. The caller ends it when the lab is closed in order.
func (s *slot) guard(script string) (*exec.Cmd, error) {
	cmd := exec.Command("flock", s.lock.Name(), script, "destroy")
	cmd.Env = s.environ()
	cmd.Dir = "/"
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true} // a ^C is for the tests, not for the guard
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("guard of lab %d: %w", s.n, err)
	}
	return cmd, nil
}
