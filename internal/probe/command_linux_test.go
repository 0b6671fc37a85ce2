package probe

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// inRelease is a target whose folder has an executable bin/check with that script.
func inRelease(t *testing.T, script string) (release.Probe, Target) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin", "check"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return release.Probe{Check: release.CheckCommand, Command: []string{"/bin/sh", "bin/check", "an argument"}},
		Target{Dir: dir, Env: []string{"PATH=" + os.Getenv("PATH"), "HOTDEPLOY_GENERATION=7"}, Pids: func() []int { return []int{9, 5, 7} }}
}

func TestCheck_CommandRunsInTheReleaseWithTheGenerationsEnvironment(t *testing.T) {
	p, target := inRelease(t, `echo "$(basename $PWD) $HOTDEPLOY_GENERATION $HOTDEPLOY_PID $1 $#"; exit 3`)
	where := filepath.Base(target.Dir)
	saysWhat(t, Check(within(t), p, target), "check /bin/sh: exit status 3: "+where+" 7 5 an argument 1")
	target.Pid = 42
	saysWhat(t, Check(within(t), p, target), where+" 7 42 an argument 1")
}

func TestCheck_CommandWithStatusZeroPassesWhateverItSays(t *testing.T) {
	p, target := inRelease(t, `echo trouble >&2`)
	for _, command := range [][]string{p.Command, {"sh", "bin/check"}, {"true"}} {
		p.Command = command
		if err := Check(within(t), p, target); err != nil {
			t.Errorf("%v: %v", command, err)
		}
	}
}

func TestCheck_CommandThatASignalEnds(t *testing.T) {
	p, target := inRelease(t, `kill -SEGV $$`)
	saysWhat(t, Check(within(t), p, target), "check /bin/sh: was killed by signal 11 (segmentation fault")
}

func TestCheck_CommandThatIsNotThereOrNotExecutable(t *testing.T) {
	p, target := inRelease(t, "#!/bin/sh\n")
	if err := os.Chmod(filepath.Join(target.Dir, "bin/check"), 0o644); err != nil {
		t.Fatal(err)
	}
	for command, want := range map[string]string{"bin/none": "bin/none: no such file", "bin/check": "bin/check: not executable", "no-such-tool": "no such file"} {
		p.Command = []string{command}
		saysWhat(t, Check(within(t), p, target), want)
	}
}

func TestCheck_EndOfACommandsOutputIsShown(t *testing.T) {
	p, target := inRelease(t, `i=0; while [ $i -lt 3000 ]; do echo "line $i with some text"; i=$((i+1)); done; printf '\033[1mlast\n\n'; exit 1`)
	err := Check(within(t), p, target)
	saysWhat(t, err, "exit status 1: line 2996 with some text | ", " | line 2999 with some text | [1mlast")
	if err != nil && strings.Contains(err.Error(), "line 2995") {
		t.Errorf("it is long: %v", err)
	}
}

func TestCheck_CommandThatHangsIsKilledWithAllThatItStarted(t *testing.T) {
	// One child, one that left the session; both hold the output open, neither heeds SIGTERM.
	p, target := inRelease(t, `trap '' TERM; echo waiting for the database; sleep 60 & echo $! >pids; setsid sleep 60 & echo $! >>pids; mv pids done; wait`)
	ctx, cancel := context.WithCancel(within(t))
	go func() {
		for { // nothing tells that a file is there
			if _, err := os.Stat(filepath.Join(target.Dir, "done")); err == nil || ctx.Err() != nil {
				cancel()
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	saysWhat(t, Check(ctx, p, target), "check /bin/sh: killed, since it did not end in time: waiting for the database")
	checkGone(t, target, 2)
}

func TestCheck_WhatACommandLeavesInTheBackgroundIsEnded(t *testing.T) {
	p, target := inRelease(t, `setsid sleep 60 & echo $! >done`)
	if err := Check(within(t), p, target); err != nil {
		t.Error(err)
	}
	checkGone(t, target, 1)
}

// checkGone: the processes in the file "done" have ended.
func checkGone(t *testing.T, target Target, n int) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(target.Dir, "done"))
	pids := strings.Fields(string(b))
	if err != nil || len(pids) != n {
		t.Fatalf("%q, %v", b, err)
	}
	for _, pid := range pids {
		if _, err := strconv.Atoi(pid); err != nil {
			t.Fatal(err)
		}
		if stat, err := os.ReadFile(fmt.Sprintf("/proc/%s/stat", pid)); err == nil && !strings.Contains(string(stat), ") Z ") {
			t.Errorf("process %s is left: %s", pid, stat)
		}
	}
}
