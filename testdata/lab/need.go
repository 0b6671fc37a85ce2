package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// Supported returns nil where a lab can run, else an error that says what is in the way.
// What can be fetched with apt-get counts as present.
func Supported() error {
	if os.Geteuid() != 0 {
		return errors.New("a lab needs root (it mounts and makes network namespaces)")
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return errors.New("a lab needs Debian (machines share the host's programs, apt-get fetches the rest)")
	}
	for _, c := range []func() error{mergedUsr, overlayKnown, cgroupKill, tunThere} {
		if err := c(); err != nil {
			return err
		}
	}
	return nil
}

func mergedUsr() error {
	if fi, err := os.Lstat("/lib"); err != nil || fi.Mode()&os.ModeSymlink == 0 {
		return errors.New("a lab needs a merged-usr Debian (/lib is not a link to usr/lib)")
	}
	return nil
}

func overlayKnown() error {
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return fmt.Errorf("a lab needs overlayfs and cgroup2: %w", err)
	}
	for _, name := range []string{"overlay", "cgroup2"} {
		if bytes.Contains(known, []byte("\t"+name+"\n")) {
			continue
		}
		// The kernel may have it as a module that nobody needed so far.
		if err := exec.Command("modprobe", name).Run(); err != nil {
			return fmt.Errorf("a lab needs a kernel with %s: modprobe: %w", name, err)
		}
	}
	return nil
}

func cgroupKill() error {
	var major, minor int
	text, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return fmt.Errorf("a lab needs Linux 5.14: %w", err)
	}
	if _, err := fmt.Sscanf(string(text), "%d.%d", &major, &minor); err != nil {
		return fmt.Errorf("a lab needs Linux 5.14, cannot read %q: %w", text, err)
	}
	if major < 5 || major == 5 && minor < 14 {
		return fmt.Errorf("a lab needs Linux 5.14 (cgroup.kill), this is %s", bytes.TrimSpace(text))
	}
	return nil
}

func tunThere() error {
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return fmt.Errorf("a lab needs TAP devices for delayed lines: %w", err)
	}
	return nil
}

// Need skips t where no lab can run. Under CI=true that is a failure: a test that never runs
// guards nothing.
func Need(t testing.TB) {
	t.Helper()
	err := Supported()
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatalf("CI must run the tests that need a lab: %v", err)
	default:
		t.Skipf("SKIPPED, NOT TESTED: %v", err)
	}
}
