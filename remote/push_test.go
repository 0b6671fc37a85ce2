package remote_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/internal/sshtest"
	"github.com/hotdeploy/hotdeploy/remote"
)

func wantFailure(t *testing.T, err error, outcome api.Outcome, words ...string) *remote.Failure {
	t.Helper()
	var f *remote.Failure
	if !errors.As(err, &f) {
		t.Fatalf("error %v, want a Failure", err)
	}
	text := f.Error() + "\nstate: " + f.State + "\nhint: " + f.Hint + "\n" + strings.Join(f.Output, "\n")
	if f.Outcome != outcome {
		t.Fatalf("outcome %q, want %q:\n%s", f.Outcome, outcome, text)
	}
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q is missing in:\n%s", w, text)
		}
	}
	return f
}

func TestPush_ReleaseArrivesAndServes(t *testing.T) {
	for name, opts := range map[string]sshtest.Options{"forwarded": {}, "through hotdeployd dial": {ForbidStreamLocal: true}} {
		t.Run(name, func(t *testing.T) {
			remote.UseDaemonPath(t, dialProgram(t))
			r := newRig(t, opts)
			rel := packed(t, "2")
			res, err := r.d.Push(t.Context(), rel)
			if err != nil {
				t.Fatal(err)
			}
			if res.Upgrade.Outcome != api.Done || res.Status.Committed.Version != "2" || res.Upgrade.By != "ann@desk" {
				t.Fatalf("result %+v", res)
			}
			if res.Transfer.Done != rel.TotalBytes() || !res.Transfer.Ended {
				t.Errorf("transfer %+v, want all of %d bytes", res.Transfer, rel.TotalBytes())
			}
			if want := "phase verify\nphase start\nphase ready"; r.said.String() != want {
				t.Errorf("said %q, want %q", r.said, want)
			}
		})
	}
}

// dialProgram is a script that does what hotdeployd dial does: it runs this test binary.
func dialProgram(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return program(t, "HOTDEPLOY_TEST_DIAL=\"$5\" exec '"+self+"' -test.run='^TestHelper_Dial$'")
}

func program(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestHelper_Dial is no test but the program of dialProgram.
func TestHelper_Dial(t *testing.T) {
	socket := os.Getenv("HOTDEPLOY_TEST_DIAL")
	if socket == "" {
		return
	}
	c, err := net.Dial("unix", socket)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go func() { io.Copy(c, os.Stdin); c.(*net.UnixConn).CloseWrite() }()
	io.Copy(os.Stdout, c)
	os.Exit(0)
}

func TestPush_ForwardingForbiddenAndNoDaemon_SaysThatItIsNotSetUp(t *testing.T) {
	remote.UseDaemonPath(t, "/nowhere/hotdeployd")
	r := newRig(t, sshtest.Options{ForbidStreamLocal: true})
	r.socket += ".not"
	_, err := r.d.Push(t.Context(), packed(t, "2"))
	if f := wantFailure(t, err, api.NothingChanged, "not set up"); !errors.Is(f, remote.ErrDaemonMissing) {
		t.Errorf("error %v, want ErrDaemonMissing", f.Err)
	}
}

func TestPush_SameReleaseServesAlready_NothingIsSent(t *testing.T) {
	r := newRig(t, sshtest.Options{})
	rel := packed(t, "2")
	for range 2 {
		if _, err := r.d.Push(t.Context(), rel); err != nil {
			t.Fatal(err)
		}
	}
	res, err := r.d.Push(t.Context(), rel)
	if err != nil || !res.Already {
		t.Fatalf("result %+v, %v; want Already", res, err)
	}
	if n := r.count("upgrade"); n != 1 {
		t.Errorf("%d upgrades were asked for, want 1", n)
	}
}

func TestPush_TwoAtOnce_TheSecondIsToldWhoAndSinceWhen(t *testing.T) {
	started := time.Date(2026, 1, 2, 10, 3, 12, 0, time.Local)
	busy := api.Upgrade{ID: "x", Kind: api.KindPush, By: "bob@roof", To: release.Ref{Version: "3"}, Started: started, Phase: api.PhaseSoak}
	t.Run("known before the upload", func(t *testing.T) {
		r := newRig(t, sshtest.Options{})
		r.set(func(st *api.Status) { st.Upgrade = &busy })
		_, err := r.d.Push(t.Context(), packed(t, "2"))
		f := wantFailure(t, err, api.NothingChanged, "bob@roof", "push of 3", "10:03:12", "soak", "release 1 is serving", "hotdeploy status web-1")
		if !errors.Is(f, api.ErrBusy) || r.count("plan") != 0 {
			t.Errorf("error %v after %d plans, want ErrBusy before the upload", f.Err, r.count("plan"))
		}
	})
	t.Run("found out when the upgrade is asked for", func(t *testing.T) {
		r := newRig(t, sshtest.Options{})
		r.after = once("complete", func() { r.set(func(st *api.Status) { st.Upgrade = &busy }) })
		_, err := r.d.Push(t.Context(), packed(t, "2"))
		if f := wantFailure(t, err, api.NothingChanged, "bob@roof"); !errors.Is(f, api.ErrBusy) {
			t.Errorf("error %v, want ErrBusy", f.Err)
		}
	})
}

// The line is cut at every step of a push, before the request has had its effect and after, for a moment and for good.
func TestPush_LineIsCut_TheOutcomeIsTheTruth(t *testing.T) {
	for _, tt := range []struct {
		step         string
		after        bool
		moment, good api.Outcome
	}{
		{"status", false, api.NothingChanged, api.NothingChanged},
		{"status", true, api.NothingChanged, api.NothingChanged},
		{"plan", false, api.NothingChanged, api.NothingChanged},
		{"plan", true, api.NothingChanged, api.NothingChanged},
		{"complete", false, api.NothingChanged, api.NothingChanged},
		{"complete", true, api.NothingChanged, api.NothingChanged},
		{"upgrade", false, api.NothingChanged, api.Unknown},
		{"upgrade", true, api.Done, api.Unknown},
		{"events", false, api.Done, api.Unknown},
		{"events", true, api.Done, api.Unknown},
	} {
		for _, forGood := range []bool{false, true} {
			name, want := "before "+tt.step, tt.moment
			if tt.after {
				name = "after " + tt.step
			}
			if forGood {
				name, want = name+", for good", tt.good
			}
			t.Run(name, func(t *testing.T) { cutAt(t, tt.step, tt.after, forGood, want) })
		}
	}
}

func cutAt(t *testing.T, step string, after, forGood bool, want api.Outcome) {
	r := newRig(t, sshtest.Options{})
	cut := r.ssh.Drop
	if forGood {
		r.d.Reconnect = 300 * time.Millisecond
		cut = r.cutForGood
	}
	if step == "events" { // the upgrade ends while nobody looks
		r.ending = nil
		cutLine := cut
		cut = func() { cutLine(); r.end(api.Upgrade{Outcome: api.Done}) }
	}
	if after {
		r.after = once(step, cut)
	} else {
		r.before = onceBefore(step, func(ctx context.Context) { cut(); <-ctx.Done() })
	}
	res, err := r.d.Push(t.Context(), packed(t, "2"))
	if want == api.Done {
		if err != nil || res.Upgrade.Outcome != api.Done {
			t.Fatalf("result %+v, %v; want done\n%s", res, err, r.said)
		}
		return
	}
	f := wantFailure(t, err, want)
	if f.State == "" || f.Hint == "" {
		t.Errorf("state %q, hint %q: both must tell something", f.State, f.Hint)
	}
	if want == api.Unknown && !strings.Contains(f.Hint, "hotdeploy status web-1") {
		t.Errorf("hint %q does not tell how to find out", f.Hint)
	}
	if n := r.count("upgrade"); want == api.NothingChanged && step != "upgrade" && n != 0 {
		t.Errorf("the upgrade was asked for %d times", n)
	}
}

func TestPush_LineIsCutBeforeTheUpgradeArrives_AnEarlierOneIsNotTakenForIt(t *testing.T) {
	r := newRig(t, sshtest.Options{})
	rel := packed(t, "2")
	earlier := api.Upgrade{ID: "earlier", Kind: api.KindPush, By: "ann@desk", To: rel.Ref(), Outcome: api.RolledBack}
	r.set(func(st *api.Status) { st.Last = &earlier })
	r.before = onceBefore("upgrade", func(ctx context.Context) { r.ssh.Drop(); <-ctx.Done() })
	_, err := r.d.Push(t.Context(), rel)
	wantFailure(t, err, api.NothingChanged, "did not hear it", "push again")
}

func TestPush_PartIsDamagedOnTheWay_ItIsSentAgainOnce(t *testing.T) {
	r := newRig(t, sshtest.Options{})
	r.damaged = 1
	if _, err := r.d.Push(t.Context(), packed(t, "2")); err != nil {
		t.Fatal(err)
	}
	if n := r.count("complete"); n != 2 {
		t.Errorf("complete was asked for %d times, want 2", n)
	}
	if !strings.Contains(r.said.String(), "damaged") {
		t.Errorf("said %q: nothing of the damage", r.said)
	}
}

func TestPush_PartIsDamagedEachTime_NothingChanged(t *testing.T) {
	r := newRig(t, sshtest.Options{})
	r.damaged = 9
	_, err := r.d.Push(t.Context(), packed(t, "2"))
	f := wantFailure(t, err, api.NothingChanged, "damaged", "release 1 is serving")
	if n := r.count("complete"); n != 2 || !errors.Is(f, api.ErrDigest) {
		t.Errorf("complete was asked for %d times (%v), want 2 and ErrDigest", n, f.Err)
	}
}

func TestPush_InterruptedUpload_GoesOnWhereItWas(t *testing.T) {
	r := newRig(t, sshtest.Options{})
	rel := packed(t, "2")
	small := rel.Manifest.Files[1]
	if err := os.WriteFile(filepath.Join(r.parts, small.SHA256), []byte("#!/bin/sh\nexec sleep 1000\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	res, err := r.d.Push(t.Context(), rel)
	if err != nil || res.Transfer.Files != 1 {
		t.Fatalf("transfer %+v, %v; want one file", res.Transfer, err)
	}
}

func TestDiscard_AfterADelivery_TheNextPushDoesNotRelyOnIt(t *testing.T) {
	r := newRig(t, sshtest.Options{})
	rel := packed(t, "2")
	if err := r.d.Discard(t.Context(), rel.Digest); err != nil || r.count("discard") != 0 {
		t.Fatalf("without a line: %v", err)
	}
	if err := r.d.Deliver(t.Context(), rel); err != nil {
		t.Fatal(err)
	}
	if err := r.d.Discard(t.Context(), rel.Digest); err != nil || r.count("discard") != 1 {
		t.Fatalf("asked %d times: %v", r.count("discard"), err)
	}
	if _, err := r.d.Push(t.Context(), rel); err != nil || r.count("plan") != 2 {
		t.Errorf("planned %d times, want 2: %v", r.count("plan"), err)
	}
}

func TestPush_CancelledBeforeTheUpgrade_NothingChanged(t *testing.T) {
	for _, step := range []string{"status", "plan", "complete"} {
		t.Run("during "+step, func(t *testing.T) {
			r := newRig(t, sshtest.Options{})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			r.before = onceBefore(step, func(context.Context) { cancel() })
			_, err := r.d.Push(ctx, packed(t, "2"))
			f := wantFailure(t, err, api.NothingChanged, "cancelled before the upgrade was asked for")
			if n := r.count("upgrade"); n != 0 || !errors.Is(f, api.ErrCancelled) {
				t.Errorf("the upgrade was asked for %d times (%v)", n, f.Err)
			}
		})
	}
}

func TestPush_CancelledDuringTheUpgrade_TellsTheSideOfTheSwitch(t *testing.T) {
	for _, tt := range []struct {
		step  string
		how   *api.Upgrade // the host's answer to the cancelling; nil: cancelled before the switch
		want  api.Outcome
		words string
	}{
		{"upgrade", nil, api.NothingChanged, "before the switch"},
		{"events", nil, api.NothingChanged, "before the switch"},
		{"events", &api.Upgrade{Outcome: api.RolledBack, Error: api.ErrCancelled.With("cancelled")}, api.RolledBack, "after the switch"},
		{"events", &api.Upgrade{Outcome: api.Done}, api.Done, "too late"},
	} {
		t.Run(string(tt.want)+" at "+tt.step, func(t *testing.T) {
			r := newRig(t, sshtest.Options{})
			r.ending = nil
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			r.after = once(tt.step, cancel)
			r.before = onceBefore("cancel", func(context.Context) {
				if tt.how != nil {
					r.end(*tt.how)
				}
			})
			_, err := r.d.Push(ctx, packed(t, "2"))
			if r.count("cancel") != 1 {
				t.Errorf("the host was asked to cancel %d times, want 1", r.count("cancel"))
			}
			if tt.want == api.Done {
				if err != nil || !strings.Contains(r.said.String(), tt.words) {
					t.Fatalf("error %v, said %q; want done and %q", err, r.said, tt.words)
				}
				return
			}
			wantFailure(t, err, tt.want, tt.words, "release 1 is serving")
		})
	}
}

func TestPush_CancelledTwice_TheOperatorLeavesAndTheUpgradeGoesOn(t *testing.T) {
	r := newRig(t, sshtest.Options{})
	r.ending, r.held = nil, true
	ctx, cancel := context.WithCancel(t.Context())
	leave, leaveNow := context.WithCancel(t.Context())
	defer leaveNow()
	r.d.Leave = leave
	r.after = once("events", cancel)
	r.before = onceBefore("cancel", func(context.Context) { leaveNow() })
	_, err := r.d.Push(ctx, packed(t, "2"))
	wantFailure(t, err, api.Unknown, "left during", "goes on", "hotdeploy status web-1")
}

func TestPush_CancelledWhileTheLineIsGone_IsUnknown(t *testing.T) {
	r := newRig(t, sshtest.Options{})
	r.ending = nil
	r.d.Reconnect = 300 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r.after = once("events", func() { r.cutForGood(); cancel() })
	_, err := r.d.Push(ctx, packed(t, "2"))
	wantFailure(t, err, api.Unknown, "hotdeploy status web-1")
}

func TestPush_UpgradeFails_TheHostsWordsAreTold(t *testing.T) {
	r := newRig(t, sshtest.Options{})
	e := api.ErrExited.With("release 2 exited with status 3 in the soak")
	e.State, e.Hint, e.Output = "release 1 is serving (generation 6)", "see why: hotdeploy logs --release 2", []string{"panic: no"}
	r.ending = &api.Upgrade{Outcome: api.RolledBack, Error: e, Phase: api.PhaseSoak}
	_, err := r.d.Push(t.Context(), packed(t, "2"))
	f := wantFailure(t, err, api.RolledBack, "status 3", "release 1 is serving", "panic: no", "hotdeploy logs web-1 --release 2")
	if !errors.Is(f, api.ErrExited) {
		t.Errorf("error %v, want ErrExited", f.Err)
	}
}

func TestPush_UpgradeFailsAndTheOutputIsInTheJournal_ItsLastLinesAreFetched(t *testing.T) {
	bin := t.TempDir()
	script := "#!/bin/sh\nfor a; do [ \"$a\" = chat/2 ] && echo 'panic: from the journal'; done\nexit 0\n"
	if err := os.WriteFile(filepath.Join(bin, "journalctl"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	e := api.ErrNotReady.With("release 2 was not ready in 30s")
	e.Journal = "chat/2"
	r := newRig(t, sshtest.Options{Env: []string{"PATH=" + bin + ":" + os.Getenv("PATH")}})
	r.ending = &api.Upgrade{Outcome: api.NothingChanged, Error: e}
	_, err := r.d.Push(t.Context(), packed(t, "2"))
	wantFailure(t, err, api.NothingChanged, "not ready", "panic: from the journal")
}

func TestPush_JournalIsForbidden_SaysHowToBeLetIn(t *testing.T) {
	bin := t.TempDir()
	script := "#!/bin/sh\necho 'No journal files were opened due to insufficient permissions.' >&2\nexit 1\n"
	if err := os.WriteFile(filepath.Join(bin, "journalctl"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	e := api.ErrNotReady.With("release 2 was not ready in 30s")
	e.Journal = "chat/2"
	r := newRig(t, sshtest.Options{Env: []string{"PATH=" + bin + ":" + os.Getenv("PATH")}})
	r.ending = &api.Upgrade{Outcome: api.NothingChanged, Error: e}
	_, err := r.d.Push(t.Context(), packed(t, "2"))
	wantFailure(t, err, api.NothingChanged, "not ready", "usermod -aG systemd-journal")
}

func TestPush_DaemonOfAnotherAPI_IsRefusedByName(t *testing.T) {
	for apiVersion, age := range map[int]string{2: "newer", -1: "older"} {
		r := newRig(t, sshtest.Options{})
		r.set(func(st *api.Status) { st.API, st.Daemon.Version = apiVersion, "7.7.7" })
		_, err := r.d.Push(t.Context(), packed(t, "2"))
		f := wantFailure(t, err, api.NothingChanged, age, "7.7.7", "hotdeploy setup web-1")
		if !errors.Is(f, remote.ErrDaemonAPI) || r.count("plan") != 0 {
			t.Errorf("error %v after %d plans", f.Err, r.count("plan"))
		}
	}
}

func TestPush_DaemonOfAnotherMinorVersion_IsAWarning(t *testing.T) {
	r := newRig(t, sshtest.Options{})
	r.set(func(st *api.Status) { st.Daemon.Version = "0.0.9" })
	if _, err := r.d.Push(t.Context(), packed(t, "2")); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(r.said.String(), "0.0.9"); n != 1 {
		t.Errorf("said %q, want one warning", r.said)
	}
}

func TestPush_NoDaemon_SaysWhichKindOfNoAndTheCommand(t *testing.T) {
	r := newRig(t, sshtest.Options{})
	r.socket += ".not"
	_, err := r.d.Push(t.Context(), packed(t, "2"))
	f := wantFailure(t, err, api.NothingChanged, "not set up", "hotdeploy setup web-1")
	if !errors.Is(f, remote.ErrDaemonMissing) {
		t.Errorf("error %v, want ErrDaemonMissing", f.Err)
	}
}

func TestPush_HostAsksForWhatIsNotInTheRelease_NothingIsSent(t *testing.T) {
	r := newRig(t, sshtest.Options{})
	r.d.Report.Transfer = func(remote.Transfer) { t.Error("something was sent") }
	r.parts = "relative/parts"
	_, err := r.d.Push(t.Context(), packed(t, "2"))
	wantFailure(t, err, api.NothingChanged, "the host's plan", "not an absolute path")
}
