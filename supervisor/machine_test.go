package supervisor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

// Stories that need a machine that is not well: the test runs once more in a child with namespaces of its own.

const childVar = "SUPERVISOR_TEST_CHILD"

// inNamespaces returns true in the child, where the story is to be told. In the parent it returns false, and the child has told it.
func inNamespaces(t *testing.T, flags uintptr) bool {
	t.Helper()
	if os.Getenv(childVar) == t.Name() {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run", "^"+t.Name()+"$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), childVar+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | flags}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOSPC) {
		if os.Getenv("CI") == "true" {
			t.Fatalf("CI must not skip: no namespaces here: %v", err)
		}
		fmt.Fprintf(os.Stderr, "##### SKIPPED, NOT TESTED: %s: no namespaces here: %v #####\n", t.Name(), err)
		t.Skip(err)
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

func TestFullDisk_WhatServesIsKeptServing(t *testing.T) {
	if !inNamespaces(t, 0) {
		return
	}
	r := emptyRig(t)
	if err := unix.Mount("tmpfs", r.cfg.Root, "tmpfs", 0, "size=128m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.stop()
		unix.Unmount(r.cfg.Root, unix.MNT_DETACH)
	})
	r.start()
	first := r.push("1")
	r.install("2")
	filler := filepath.Join(r.cfg.Root, "shared/filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	f.Close()
	u := r.upgrade(api.KindPush, "2")
	if u.Outcome != api.NothingChanged || !errors.Is(u.Error, api.ErrDiskSpace) || !strings.Contains(u.Error.State, "release 1 is serving") {
		t.Errorf("a push: %s: %+v", u.Outcome, u.Error)
	}
	if got, err := r.client.GetUpgrade(r.ctx(), u.ID); err != nil || got.Outcome != api.NothingChanged { // the history had no room for it
		t.Errorf("asked once more: %+v, %v", got, err)
	}
	if _, err := r.client.Stop(r.ctx(), api.StopRequest{By: "tester"}); !errors.Is(err, api.ErrDiskSpace) {
		t.Errorf("a stop that will be forgotten: %v", err)
	}
	r.killServing()
	r.awaitServing(first.Generation)
	r.stop() // as a reboot does
	r.start()
	if !r.serves("1") {
		t.Error("1 does not serve after a restart of the daemon")
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if r.push("2"); !r.serves("2") {
		t.Error("with room again 2 does not serve")
	}
}

// A journald that is away must not keep an app from coming up.
func TestJournal_IsAway_TheAppComesUpAndIsHeard(t *testing.T) {
	if !inNamespaces(t, 0) {
		return
	}
	if _, err := os.Stat("/run/systemd/journal"); err == nil {
		if err := unix.Mount("tmpfs", "/run/systemd/journal", "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	r := emptyRig(t)
	heard, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer heard.Close()
	r.prepare = func(o *Options) { o.Journal, o.Output = true, out }
	r.start()
	r.push("1", self("talks"))
	r.stop()
	out.Close()
	if b, err := io.ReadAll(heard); err != nil || !strings.Contains(string(b), "1: line 2\n1: last words") {
		t.Errorf("%q, %v", b, err)
	}
}
