package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// A child does a piece of work and is killed in the middle of it. Whoever opens the folder next finds all of it or nothing,
// no rubbish, and can do the work again.

func init() {
	for name, work := range map[string]func(s *Store, args []string) error{
		"plan": func(s *Store, args []string) error { plan(childT{}, s, one); return nil },
		"complete": func(s *Store, args []string) error {
			_, err := s.Complete(context.Background(), args[0])
			return err
		},
		"remove":          func(s *Store, args []string) error { return s.Remove(context.Background(), args[0], nil) },
		"save":            func(s *Store, args []string) error { return s.SaveState(State{NextGeneration: 2}) },
		"current":         func(s *Store, args []string) error { return s.SetCurrent(args[0]) },
		"append":          func(s *Store, args []string) error { return s.AppendHistory(api.Upgrade{ID: "new"}) },
		"write and write": writeAndWrite,
	} {
		children[name] = func(args []string) error {
			s, err := Open(args[0], "chat")
			if err != nil {
				return err
			}
			return work(s, args[1:])
		}
	}
}

// writeAndWrite saves one state after the other, and says so after each.
func writeAndWrite(s *Store, _ []string) error {
	for i := 2; ; i++ {
		st := State{NextGeneration: i, Upgrade: &api.Upgrade{ID: fmt.Sprint(i), By: strings.Repeat("x", i%5000)}}
		if err := errors.Join(s.SaveState(st), s.AppendHistory(*st.Upgrade)); err != nil {
			return err
		}
		fmt.Println(i)
	}
}

// die runs a child that must be killed at its failpoint.
func die(t *testing.T, child, failpoint string, args ...string) {
	t.Helper()
	out, err := childCommand(t, child, failpoint, args...).CombinedOutput()
	ended, ok := errors.AsType[*exec.ExitError](err)
	if !ok || ended.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("%s was not killed at %q: %v: %s", child, failpoint, err, out)
	}
}

func TestKilledWhileCompleting_TheReleaseIsAbsentOrWholeAndTheUploadIsNotLost(t *testing.T) {
	two := app{version: "2", files: map[string]string{
		"bin/tool*": "tool two", "lib/deep/d": one.files["lib/deep/d"], "lib/a.txt": "new", "lib/b.txt": "new too", "link": "->run",
	}, edit: func(m *release.Manifest) { m.Spec.Run.Shared = []string{"data"} }}
	for _, at := range []string{
		"dirs", "placed", "placed:2", "placed:4", "adopt", "symlinks", "write manifest.json", "written manifest.json", "sync",
		"publish", "published", "synced",
	} {
		for _, uploader := range []string{"us", "another user"} {
			if (at == "adopt") != (uploader == "another user") && at == "adopt" {
				continue
			}
			t.Run(at+", uploaded by "+uploader, func(t *testing.T) {
				dir := t.TempDir()
				s := open(t, dir)
				push(t, s, one)
				digest := send(t, s, two)
				if uploader != "us" {
					if os.Geteuid() != 0 {
						cannot(t, "only root can give a file to another user")
					}
					for _, content := range two.contents() {
						if p := part(s, digest, content); exists(p) {
							must(t, os.Chown(p, 12345, 12345))
						}
					}
				}
				must(t, s.Close())
				die(t, "complete", at, dir, digest)

				s = open(t, dir)
				if exists(filepath.Join(dir, "releases", "2")) {
					whole(t, s, "2")
				} else if missing, _ := plan(t, s, two); len(missing) != 0 {
					t.Errorf("has to be sent again: %v", missing)
				}
				info, err := s.Complete(t.Context(), digest)
				if err != nil || info.Version != "2" {
					t.Fatalf("again: %v", err)
				}
				whole(t, s, "1")
				whole(t, s, "2")
				if exists(filepath.Join(dir, "incoming", digest)) {
					t.Error("the upload is still there")
				}
			})
		}
	}
}

func TestKilledWhilePlanning_ItCanBePlannedAgain(t *testing.T) {
	for _, at := range []string{"write manifest.json", "written manifest.json"} {
		dir := t.TempDir()
		must(t, open(t, dir).Close())
		die(t, "plan", at, dir)
		push(t, open(t, dir), one)
	}
}

func TestKilledWhileRemoving_NothingOfTheReleaseIsSeen(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	push(t, s, one)
	must(t, s.Close())
	die(t, "remove", "removing", dir, "1")
	s = open(t, dir)
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Errorf("list: %v, %v", list, err)
	}
	push(t, s, one)
	whole(t, s, "1")
}

func TestKilledWhileWritingTheState_ItIsTheOldOneOrTheNew(t *testing.T) {
	for at, want := range map[string]int{"write supervisor.json": 1, "written supervisor.json": 2} {
		dir := t.TempDir()
		s := open(t, dir)
		must(t, s.SaveState(State{NextGeneration: 1}))
		must(t, s.Close())
		die(t, "save", at, dir)
		if st, err := open(t, dir).LoadState(); err != nil || st.NextGeneration != want {
			t.Errorf("%s: %+v, %v", at, st, err)
		}
	}
}

func TestKilledWhileMovingCurrent_ItStays(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	push(t, s, one)
	push(t, s, app{version: "2"})
	must(t, s.SetCurrent("1"))
	must(t, s.Close())
	die(t, "current", "current", dir, "2")
	s = open(t, dir)
	if v, err := s.Current(); err != nil || v != "1" {
		t.Errorf("current: %q, %v", v, err)
	}
	must(t, s.SetCurrent("2"))
}

func TestKilledWhileAppending_TheHistoryIsWithoutIt(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	must(t, s.AppendHistory(api.Upgrade{ID: "old"}))
	must(t, s.Close())
	die(t, "append", "append", dir)
	if list, err := open(t, dir).History(10); err != nil || len(list) != 1 || list[0].ID != "old" {
		t.Errorf("%v, %v", list, err)
	}
}

// Killed from outside, wherever it is: what it said was saved is there.
func TestKilledAnywhere_WhatWasPromisedIsThere(t *testing.T) {
	dir := t.TempDir()
	must(t, open(t, dir).Close())
	for round := range 10 {
		cmd := childCommand(t, "write and write", "", dir)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		d := json.NewDecoder(out)
		var promised int
		for range 5 + round {
			must(t, d.Decode(&promised))
		}
		must(t, cmd.Process.Kill())
		for d.Decode(&promised) == nil { // what it had said before the kill came
		}
		cmd.Wait()
		s := open(t, dir)
		st, err := s.LoadState()
		if err != nil || st.NextGeneration < promised || st.NextGeneration > promised+1 {
			t.Fatalf("state: promised %d, got %+v, %v", promised, st, err)
		}
		list, err := s.History(1)
		if err != nil || len(list) != 1 {
			t.Fatalf("history: %v, %v", list, err)
		}
		var last int
		fmt.Sscan(list[0].ID, &last)
		if last < promised || last > promised+1 {
			t.Fatalf("history: promised %d, the last is %d", promised, last)
		}
		must(t, s.Close())
	}
}

func TestASecondProcessIsToldWhoHasTheFolder(t *testing.T) {
	dir := t.TempDir()
	cmd := childCommand(t, "write and write", "", dir)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	must(t, json.NewDecoder(out).Decode(new(int)))
	temp := filepath.Join(dir, "releases", tempName())
	must(t, os.Mkdir(temp, 0o755))
	_, err = Open(dir, "chat")
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", cmd.Process.Pid)) {
		t.Errorf("got %v", err)
	}
	if !exists(temp) {
		t.Error("it touched the other's work")
	}
	must(t, cmd.Process.Kill())
	cmd.Wait()
	s := open(t, dir)
	if _, err := Open(dir, "chat"); !errors.Is(err, ErrLocked) {
		t.Errorf("twice in one process: %v", err)
	}
	must(t, s.Close())
	must(t, open(t, dir).Close())
}

func TestLeftoversGoWhenTheFolderIsOpened(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	digest := send(t, s, one)
	must(t, s.Close())
	temp := func(d string) string { return filepath.Join(dir, d, tempName()) }
	for _, d := range []string{"releases", "incoming", "state", "shared", ".", "incoming/" + digest, "incoming/" + digest + "/parts"} {
		closed := filepath.Join(temp(d), "files")
		must(t, os.MkdirAll(filepath.Join(closed, "deep"), 0o755))
		write(t, filepath.Join(closed, "deep", "file"), "x")
		must(t, os.Chmod(filepath.Join(closed, "deep"), 0o555))
		must(t, os.Chmod(closed, 0o555))
		write(t, temp(d), "x")
		must(t, os.Symlink("/etc", temp(d)))
		must(t, syscall.Mkfifo(temp(d), 0o666))
	}
	s = open(t, dir) // its audit fails for each one that is left
	audit(t, filepath.Join(dir, "releases"))
	if missing, _ := plan(t, s, one); len(missing) != 0 {
		t.Errorf("the upload lost something: %v", missing)
	}
	if !exists("/etc/passwd") {
		t.Error("it followed a symlink")
	}
}
