package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/remote"
)

func TestClosing_TellsWhoIsStillInTheOldOnes(t *testing.T) {
	gen := func(connections ...int) *api.Status {
		st := &api.Status{Generations: []api.Generation{{State: api.GenServing, Connections: 9}}}
		for _, n := range connections {
			st.Generations = append(st.Generations, api.Generation{State: api.GenDraining, Connections: n})
		}
		return st
	}
	const served = "1.4.2 is serving (generation 7)"
	for _, tt := range []struct {
		st   *api.Status
		want string
	}{
		{nil, served},
		{gen(), served},
		{gen(0), served},
		{gen(1), served + ", 1 connection finishes in 1 older generation"},
		{gen(312), served + ", 312 connections finish in 1 older generation"},
		{gen(300, 12), served + ", 312 connections finish in 2 older generations"},
		{gen(300, -1), served + ", connections finish in 2 older generations"},
	} {
		res := remote.Result{Status: tt.st, Upgrade: api.Upgrade{To: release.Ref{Version: "1.4.2"}, Generation: 7}}
		if got := closing(res); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

func TestPrintStatus_ShowsEveryGenerationAndHowItCameAbout(t *testing.T) {
	now := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	deadline := now.Add(23 * time.Hour)
	st := api.Status{Service: "chat", Text: "serving 1.4.2 (generation 7), 1 draining with 312 connections",
		Generations: []api.Generation{
			{Number: 7, Release: release.Ref{Version: "1.4.2"}, State: api.GenServing, PID: 4711, Taken: &api.Handoff{From: 6, To: 7, Moved: 3}, Started: ago(3 * time.Minute), RSS: 45_000_000, Connections: 1204, Text: "all well", Health: "ok"},
			{Number: 6, Release: release.Ref{Version: "1.4.1"}, State: api.GenDraining, PID: 4000, Started: ago(50 * time.Hour), RSS: -1, Connections: -1, Deadline: &deadline,
				Handoff: &api.Handoff{From: 6, To: 7, Moved: 3, Kept: map[string]int{"busy": 2}, LongestPause: 4 * time.Millisecond}},
		},
		Listeners: []api.Listener{{Listener: release.Listener{Name: "http", Network: "tcp", Address: ":80"}, Source: "systemd"}},
		Last:      &api.Upgrade{Kind: "push", By: "ann@desk", To: release.Ref{Version: "1.4.3"}, Started: ago(time.Hour), Outcome: api.RolledBack, Error: &api.Error{Message: "not ready"}},
		Previous:  &release.Ref{Version: "1.4.1"},
	}
	var b bytes.Buffer
	printStatus(&b, "web-1", st, now)
	want := `web-1: chat: serving 1.4.2 (generation 7), 1 draining with 312 connections
GENERATION  RELEASE  STATE     AGE   PID   MEMORY   CONNECTIONS  TEXT
7           1.4.2    serving   3m0s  4711  45.0 MB  1204         all well; took 3 from generation 6
6           1.4.1    draining  2d2h  4000  ?        ?            to generation 7: moved 3, kept 2 (busy 2), longest pause 4ms; is ended in 23h0m
listening: http on tcp :80 (bound by systemd)
last: push of 1.4.3 by ann@desk, 1h0m ago: rolled back: not ready
a rollback goes to 1.4.1
`
	if got := b.String(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestPrintStatus_WhateverAHostSays_StaysInItsPlace(t *testing.T) {
	const wild = "up\x1b[2J\n0  2  serving\tforged\u202e"
	st := api.Status{Service: "chat", Text: wild, Daemon: api.Daemon{Adopted: []string{wild}},
		Generations: []api.Generation{{Release: release.Ref{Version: "1"}, Text: wild, Health: wild}}}
	var b bytes.Buffer
	printStatus(&b, "web-1", st, time.Now())
	printUpgrades(&b, []api.Upgrade{{By: wild, Error: &api.Error{Message: wild}}})
	if got := b.String(); strings.Count(got, "\n") != 6 || strings.ContainsAny(got, "\x1b\u202e") {
		t.Errorf("%d lines:\n%q", strings.Count(got, "\n"), got)
	}
}

func TestPrintUpgrades_TellsWhatMoved(t *testing.T) {
	at := time.Date(2026, 1, 2, 12, 0, 0, 0, time.Local)
	end := at.Add(2500 * time.Millisecond)
	moved := &api.Handoff{From: 1, To: 2, Moved: 198, Kept: map[string]int{"busy": 1, "told off": 1}, Refused: 1, LongestPause: 12 * time.Millisecond}
	var b bytes.Buffer
	printUpgrades(&b, []api.Upgrade{
		{Kind: "push", To: release.Ref{Version: "2"}, By: "ann@desk", Started: at, Finished: &end, Outcome: api.RolledBack, Error: &api.Error{Message: "unhealthy\nreally"},
			Handoff: moved, HandedBack: &api.Handoff{From: 2, To: 1, Moved: 198, LongestPause: 3 * time.Millisecond}},
		{Kind: "push", To: release.Ref{Version: "1"}, By: "ann@desk", Started: at, Outcome: api.Done},
	})
	want := `BEGAN                WHAT  RELEASE  BY        TOOK  OUTCOME                         CONNECTIONS
2026-01-02 12:00:00  push  2        ann@desk  2.5s  rolled back: unhealthy really   moved 198, kept 2 (busy 1, told off 1; refused by the new release 1), longest pause 12ms; back: moved 198, longest pause 3ms
2026-01-02 12:00:00  push  1        ann@desk  -     done                            -
`
	if got := b.String(); strings.Join(strings.Fields(got), " ") != strings.Join(strings.Fields(want), " ") {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestPrintFailure_IsThreeLinesAndTheOutputBetween(t *testing.T) {
	var b bytes.Buffer
	printFailure(&b, "web-1: release 7 exited\nwith 3", "release 6 is serving", "see why", []string{"panic: no"})
	want := "hotdeploy: error: web-1: release 7 exited\n    with 3\n    panic: no\nhotdeploy: state: release 6 is serving\nhotdeploy: hint:  see why\n"
	if b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

func TestNarrator_NoTerminal_LinesForStartAndEndOnly(t *testing.T) {
	var b bytes.Buffer
	a := &app{stderr: &b}
	n := a.newNarrator("web-1")
	first := remote.Transfer{Files: 2, Total: 3_000_000, Resumed: 1_000_000, Done: 1_000_000, Reused: 500}
	n.transfer(first)
	for done := first.Done; done < first.Total; done += 1000 {
		n.transfer(remote.Transfer{Files: 2, Total: first.Total, Resumed: first.Resumed, Done: done})
	}
	n.transfer(remote.Transfer{Files: 2, Total: first.Total, Resumed: first.Resumed, Done: first.Total, Ended: true})
	n.enter("soak")
	n.phase(api.PhaseTime{Phase: "soak", Took: 10 * time.Second})
	n.phase(api.PhaseTime{Phase: "handoff", Took: 300 * time.Millisecond, Text: "moved 100, longest pause 12ms"})
	n.finish()
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(lines) != 4 || lines[3] != "  handoff  0.3s   moved 100, longest pause 12ms" || lines[0] != "web-1: uploading 2 files, 2.0 MB (1.0 MB are there already)" ||
		!strings.HasPrefix(lines[1], "web-1: uploaded 2.0 MB in ") || lines[2] != "  soak     10.0s" {
		t.Errorf("lines %q", lines)
	}
}

func TestNarrator_Terminal_LeavesNoLineHalfWritten(t *testing.T) {
	var b bytes.Buffer
	n := &narrator{w: &b, name: "web-1", terminal: true, bars: new(bars)}
	n.enter("start")
	n.phase(api.PhaseTime{Phase: "start", Took: time.Second})
	n.enter("soak")
	n.say("cancelling")
	n.finish()
	if got, want := b.String(), "  start    ...\r  start    1.0s\n  soak     ...\nweb-1: cancelling\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAge_IsTheTwoLargestUnits(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 59 * time.Second: "59s", 61 * time.Second: "1m1s", 3*time.Hour + 5*time.Minute: "3h5m", 50 * time.Hour: "2d2h",
	} {
		if got := age(time.Unix(0, 0), time.Unix(0, 0).Add(d)); got != want {
			t.Errorf("age of %v: %q, want %q", d, got, want)
		}
	}
}

func TestNamesOfFilesDrawNothingOnTheTerminal(t *testing.T) {
	for text, want := range map[string]string{
		"café 日本, two\n\tlines": "café 日本, two\n\tlines",
		"a\x1b[2J\r\x00b":       `a\x1b[2J\r\x00b`,
		"\xff, \u202e, \u009b":  `\xff, \u202e, \u009b`,
	} {
		if got := visible(text); got != want {
			t.Errorf("%q is shown as %q, want %q", text, got, want)
		}
	}
}

func TestTextOfOthers_BeginsNoLine(t *testing.T) {
	const forged = "\nhotdeploy: state: all is well\r\x1b[2J"
	var errs, out bytes.Buffer
	a := &app{stdout: &out, stderr: &errs, verbose: true}
	h := a.newHost("web-1", "chat", "")
	h.say("no %s", forged)
	h.told.event(api.Event{Text: forged})
	h.told.phase(api.PhaseTime{Phase: "soak" + forged, Text: forged})
	h.told.terminal = true
	h.told.enter("soak" + forged)
	h.told.finish()
	h.tell("100%% %s", forged)
	printFailure(&errs, "no"+forged, "state"+forged, "hint"+forged, []string{"app" + forged})
	text := out.String() + errs.String()
	if lines := strings.Count("\n"+text, "\nhotdeploy: state: all"); lines > 0 || strings.ContainsAny(text, "\r\x1b") {
		t.Errorf("%d forged lines in\n%q", lines, text)
	}
	if want := `web-1: 100% \nhotdeploy: state: all is well\r\x1b[2J` + "\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}
