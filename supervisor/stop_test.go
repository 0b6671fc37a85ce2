package supervisor

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// stubborn takes no notice of SIGTERM for as long as it may.
func stubborn(d time.Duration) change {
	return func(s *release.Spec) {
		s.Run.Env["WSECHO_IGNORE_SIGTERM"] = "true"
		s.Run.StopAfter = release.Duration(d)
	}
}

func (r *rig) metrics() string {
	r.t.Helper()
	var b bytes.Buffer
	if err := r.client.Metrics(r.ctx(), &b); err != nil {
		r.t.Fatal(err)
	}
	return b.String()
}

// killServing kills the app that serves, as the kernel would when memory runs out.
func (r *rig) killServing() {
	r.t.Helper()
	if err := syscall.Kill(r.status().Generations[0].PID, syscall.SIGKILL); err != nil {
		r.t.Fatal(err)
	}
}

// awaitServing waits for a serving generation newer than after, and returns its number.
func (r *rig) awaitServing(after int) int {
	r.t.Helper()
	number := 0
	r.await(func(e api.Event) bool {
		if u := e.Upgrade; u != nil && u.Outcome == api.Done && u.Generation > after {
			number = u.Generation
		}
		return number > 0
	})
	return number
}

// breakState makes the state file one that cannot be replaced. What it returns puts it right again.
func (r *rig) breakState() (repair func()) {
	r.t.Helper()
	file := filepath.Join(r.cfg.Root, "state/supervisor.json")
	if err := errors.Join(os.Rename(file, file+".away"), os.MkdirAll(filepath.Join(file, "in the way"), 0o755)); err != nil {
		r.t.Fatal(err)
	}
	return func() {
		r.t.Helper()
		if err := errors.Join(os.RemoveAll(file), os.Rename(file+".away", file)); err != nil {
			r.t.Fatal(err)
		}
	}
}

func TestStop_IsNoCrash(t *testing.T) {
	r := newRig(t)
	r.push("1")
	second := r.push("2")
	for range 3 {
		if _, err := r.client.Stop(r.ctx(), api.StopRequest{By: "tester"}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.client.Start(r.ctx(), api.StopRequest{By: "tester"}); err != nil {
			t.Fatal(err)
		}
	}
	if !strings.Contains(r.metrics(), "hotdeploy_crashes_total 0\n") {
		t.Errorf("what an operator stopped counts as crashed:\n%s", r.metrics())
	}
	r.killServing()
	r.awaitServing(second.Generation + 3)
	if st := r.status(); st.Committed.Version != "2" {
		t.Errorf("one crash after three stops goes back to %s", st.Committed.Version)
	}
	if !strings.Contains(r.metrics(), "hotdeploy_crashes_total 1\n") {
		t.Errorf("one crash:\n%s", r.metrics())
	}
}

func TestStop_WhileItLasts_NothingElseBegins(t *testing.T) {
	r := newRig(t)
	r.push("1", stubborn(time.Minute))
	r.install("2")
	stopped := make(chan error, 1)
	go func() {
		_, err := r.client.Stop(context.Background(), api.StopRequest{By: "alice@laptop"})
		stopped <- err
	}()
	r.awaitText("alice@laptop")
	if _, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindPush, Version: "2", By: "bob"}); !errors.Is(err, api.ErrBusy) || !strings.Contains(err.Error(), "alice@laptop") {
		t.Errorf("a push meanwhile: %v", err)
	}
	if _, err := r.client.Start(r.ctx(), api.StopRequest{By: "bob"}); !errors.Is(err, api.ErrBusy) {
		t.Errorf("a start meanwhile: %v", err)
	}
	if st := r.status(); !strings.Contains(st.Text, "stopping") {
		t.Errorf("meanwhile: %s", st.Text)
	}
	if _, err := r.client.Stop(r.ctx(), api.StopRequest{By: "carol", Now: true}); err != nil { // it joins the first, and ends it
		t.Errorf("a second stop: %v", err)
	}
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	if st := r.status(); st.State != api.StateStopped || len(st.Generations) != 0 || len(st.Listeners) != 0 {
		t.Errorf("%s: %+v, %+v", st.Text, st.Generations, st.Listeners)
	}
}

func TestStop_DuringAnUpgrade_CancelsIt(t *testing.T) {
	r := newRig(t)
	r.push("1")
	r.install("2", func(s *release.Spec) { s.Soak.Duration = release.Duration(time.Minute) })
	u, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindPush, Version: "2", By: "tester"})
	if err != nil {
		t.Fatal(err)
	}
	r.awaitPhase(u, api.PhaseSoak)
	st, err := r.client.Stop(r.ctx(), api.StopRequest{By: "tester"})
	if err != nil || st.State != api.StateStopped || len(st.Generations) != 0 || st.Committed.Version != "1" {
		t.Errorf("%+v, %v", st, err)
	}
	if got := r.outcome(u.ID); got.Outcome != api.RolledBack || !errors.Is(got.Error, api.ErrCancelled) {
		t.Errorf("the upgrade: %+v", got)
	}
	if st, err := r.client.Start(r.ctx(), api.StopRequest{By: "tester"}); err != nil || st.State != api.StateServing || !r.serves("1") {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestStop_CannotBeRemembered_NothingChanges(t *testing.T) {
	r := newRig(t)
	first := r.push("1")
	repair := r.breakState()
	if _, err := r.client.Stop(r.ctx(), api.StopRequest{By: "tester"}); err == nil {
		t.Error("stopped, and would start again after a restart of the daemon")
	}
	if st := r.status(); st.State != api.StateServing || !r.serves("1") {
		t.Errorf("%s", st.Text)
	}
	r.killServing()
	r.awaitServing(first.Generation) // it is still one that should run
	repair()
}

func TestStart_OfWhatServes_ChangesNothing(t *testing.T) {
	r := newRig(t)
	u := r.push("1")
	if st, err := r.client.Start(r.ctx(), api.StopRequest{By: "tester"}); err != nil || st.Generations[0].Number != u.Generation {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestPush_OntoAStoppedService_StartsIt(t *testing.T) {
	r := newRig(t)
	r.push("1")
	if _, err := r.client.Stop(r.ctx(), api.StopRequest{By: "tester"}); err != nil {
		t.Fatal(err)
	}
	r.install("2", env("WSECHO_EXIT_AT_START", "true"))
	if u := r.upgrade(api.KindPush, "2"); u.Outcome != api.NothingChanged || r.status().State != api.StateStopped {
		t.Errorf("a bad one: %s, %s", u.Outcome, r.status().Text)
	}
	r.push("3")
	if !r.serves("3") {
		t.Error("3 does not serve")
	}
	r.stop()
	r.start()
	if !r.serves("3") {
		t.Error("3 does not serve after a restart of the daemon")
	}
}

// Between the last app's end and the listeners', nothing but the ledger says that they are to be closed.
func TestStop_KilledBeforeItLetsGoOfThePort_TheNextOneDoes(t *testing.T) {
	inCrashModes(t, func(t *testing.T, r *crashRig) {
		r.push("1")
		r.arm("all ended", "kill")
		if _, err := r.client.Stop(r.ctx(), api.StopRequest{By: "tester"}); err == nil {
			t.Fatal("it was not killed")
		}
		<-r.ended
		r.client.Close()
		r.disarm()
		r.boot()
		free := func() error {
			ln, err := net.Listen("tcp", r.addr)
			if err == nil {
				err = ln.Close()
			}
			return err
		}
		for limit := time.Now().Add(20 * time.Second); free() != nil; <-time.After(5 * time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatalf("%v; the service: %+v", free(), r.status())
			}
		}
		if _, err := r.client.Start(r.ctx(), api.StopRequest{By: "tester"}); err != nil || !r.serves("1") {
			t.Errorf("it does not start again: %v", err)
		}
	})
}

func init() {
	selves["counts its SIGTERMs"] = func() {
		term := make(chan os.Signal, 10)
		signal.Notify(term, syscall.SIGTERM)
		notify("READY=1")
		for range term {
			f, err := os.OpenFile(os.Getenv("COUNT"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
			if err != nil {
				panic(err)
			}
			f.WriteString("x")
			f.Close()
		}
	}
}

// To many apps a second SIGTERM means at once: whoever was told to finish is not told again at a stop, by whomever.
func TestStop_OfADrainingOne_IsNoSecondSIGTERM(t *testing.T) {
	for name, stop := range map[string]func(r *crashRig) error{
		"by an operator": func(r *crashRig) error {
			_, err := r.client.Stop(r.ctx(), api.StopRequest{By: "tester"})
			return err
		},
		"without a supervisor": func(r *crashRig) error {
			r.kill()
			return End(r.ctx(), r.cfg, log.New(io.Discard, "", 0))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newCrashRig(t, crashModes[1])
			count := filepath.Join(r.dir, "count")
			r.push("1", self("counts its SIGTERMs"), env("COUNT", count), func(s *release.Spec) { s.Run.StopAfter = release.Duration(2 * time.Second) })
			r.push("2")
			told := func() string { b, _ := os.ReadFile(count); return string(b) }
			for limit := time.Now().Add(20 * time.Second); told() == ""; <-time.After(time.Millisecond) {
				if time.Now().After(limit) {
					t.Fatal("it was never told")
				}
			}
			if err := stop(r); err != nil {
				t.Fatal(err)
			}
			if got := told(); got != "x" {
				t.Errorf("it was told %d times", len(got))
			}
		})
	}
}
