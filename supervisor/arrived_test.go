package supervisor

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// releases is what lies there, whatever the supervisor says.
func (r *rig) releases() (names []string) {
	r.t.Helper()
	list, err := os.ReadDir(filepath.Join(r.cfg.Root, "releases"))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, e := range list {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	return names
}

func (r *rig) write(name, text string) {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// hasOnly waits until the host has these releases and no other.
func (r *rig) hasOnly(versions ...string) {
	r.t.Helper()
	var is []string
	for limit := time.Now().Add(20 * time.Second); time.Now().Before(limit); {
		if is = r.releases(); slices.Equal(is, versions) {
			return
		}
	}
	r.t.Errorf("releases %q, want %q", is, versions)
}

func TestFailedPush_LeavesNoRelease_AndItsVersionIsFree(t *testing.T) {
	stranger, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	for _, tc := range []struct {
		name      string
		change    change
		meanwhile func(*rig, api.Upgrade)
		outcome   api.Outcome
	}{
		{name: "exits at once", change: env("WSECHO_EXIT_AT_START", "true"), outcome: api.NothingChanged},
		{name: "a stranger has the port", change: func(s *release.Spec) {
			s.Listeners = append(s.Listeners, release.Listener{Name: "taken", Network: "tcp", Address: stranger.Addr().String()})
		}, outcome: api.NothingChanged},
		{name: "never ready", change: func(s *release.Spec) {
			s.Run.Env["WSECHO_NEVER_READY"], s.Ready.Timeout = "true", release.Duration(100*time.Millisecond)
		}, outcome: api.NothingChanged},
		{name: "dies in the soak", change: soaks(time.Minute), meanwhile: func(r *rig, u api.Upgrade) { r.killSoaking(u) }, outcome: api.RolledBack},
		{name: "cancelled in the soak", change: soaks(time.Minute), meanwhile: func(r *rig, u api.Upgrade) {
			r.awaitPhase(u, api.PhaseSoak)
			if _, err := r.client.Cancel(r.ctx(), u.ID); err != nil {
				r.t.Fatal(err)
			}
		}, outcome: api.RolledBack},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			r.push("1")
			r.install("2", tc.change)
			u, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindPush, Version: "2", By: "tester"})
			if err != nil {
				t.Fatal(err)
			}
			if tc.meanwhile != nil {
				tc.meanwhile(r, u)
			}
			if u = r.outcome(u.ID); u.Outcome != tc.outcome {
				t.Fatalf("%s: %+v", u.Outcome, u.Error)
			}
			r.hasOnly("1")
			if u := r.push("2", env("SOMETHING", "else")); u.Outcome != api.Done {
				t.Errorf("%+v", u)
			}
			r.hasOnly("1", "2")
		})
	}
}

// The content of a failed release is not sent again.
func TestFailedPush_OfTheSameContentAgain_SendsNothing(t *testing.T) {
	r := newRig(t)
	r.push("1")
	changes := func(s *release.Spec) { s.Run.Env["WSECHO_EXIT_AT_START"] = "true" }
	r.write("src-2/data", strings.Repeat("only in release 2\n", 1000))
	r.install("2", changes)
	if u := r.upgrade(api.KindPush, "2"); u.Outcome != api.NothingChanged {
		t.Fatalf("%s: %+v", u.Outcome, u.Error)
	}
	r.hasOnly("1")
	packed, err := r.pack("2", changes)
	if err != nil {
		t.Fatal(err)
	}
	if plan, err := r.client.PlanUpload(r.ctx(), packed.Bytes); err != nil || plan.Complete || len(plan.Missing) != 0 {
		t.Errorf("plan %+v (%v)", plan, err)
	}
	r.install("2", changes)
	r.hasOnly("1", "2")
}

// socketAt is a WebSocket to that version, where two of them accept.
func (r *rig) socketAt(version string) *websocket.Conn {
	r.t.Helper()
	for limit := time.Now().Add(20 * time.Second); time.Now().Before(limit); {
		c, _, err := websocket.DefaultDialer.DialContext(r.ctx(), "ws://"+r.addr+"/ws", nil)
		if err != nil {
			r.t.Fatal(err)
		}
		if err := c.WriteMessage(websocket.TextMessage, []byte("who")); err != nil {
			r.t.Fatal(err)
		}
		var answer struct{ V string }
		if err := c.ReadJSON(&answer); err != nil {
			r.t.Fatal(err)
		}
		if answer.V == version {
			return c
		}
		c.Close()
	}
	r.t.Fatalf("no WebSocket comes to %s", version)
	return nil
}

// What was there before a push stays, whatever comes of that.
func TestFailedUpgrade_OfAReleaseThatServedBefore_ItStays(t *testing.T) {
	r := newRig(t)
	r.push("1")
	r.push("2")
	r.push("3")
	r.hostEnv("WSECHO_EXIT_AT_START=true\n")
	for _, kind := range []string{api.KindRollback, api.KindPush} {
		if u := r.upgrade(kind, "2"); u.Outcome != api.NothingChanged {
			t.Fatalf("%s: %s: %+v", kind, u.Outcome, u.Error)
		}
	}
	r.hasOnly("1", "2", "3")
}

// A push that ended after its upload is in nobody's way.
func TestPush_VersionOfOneThatNeverServed_IsFree(t *testing.T) {
	r := newRig(t)
	r.push("1")
	r.install("2", env("WHICH", "first"))
	r.hasOnly("1", "2")
	r.push("2", env("WHICH", "second"))
	if err := r.tryInstall("2", env("WHICH", "third")); !errors.Is(err, api.ErrConflict) {
		t.Errorf("a version that serves can be had again: %v", err)
	}
}

// While a failed release still has clients its version is taken, and whoever wants it is told by what.
func TestPush_VersionOfAFailedOneThatDrains_IsTakenUntilItEnds(t *testing.T) {
	r := newRig(t)
	r.push("1")
	r.install("2", func(s *release.Spec) { s.Soak.Duration = release.Duration(time.Minute) })
	u, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindPush, Version: "2", By: "tester"})
	if err != nil {
		t.Fatal(err)
	}
	r.awaitPhase(u, api.PhaseSoak)
	c := r.socketAt("2")
	if _, err := r.client.Cancel(r.ctx(), u.ID); err != nil {
		t.Fatal(err)
	}
	err = r.tryInstall("2", env("WHICH", "second"))
	if !errors.Is(err, api.ErrConflict) || !strings.Contains(err.Error(), "generation 2 of it still has clients") {
		t.Errorf("%v", err)
	}
	c.Close()
	r.push("2", env("WHICH", "second"))
}

// What a crash of the supervisor kept from going goes at the next start.
func TestFailedPush_SupervisorEndsMeanwhile_ItGoesAtTheNextStart(t *testing.T) {
	r := newRig(t)
	r.push("1")
	r.install("2")
	r.hasOnly("1", "2")
	r.stop()
	r.start()
	r.hasOnly("1")
	r.push("2", env("WHICH", "second"))
}

// A push that ends between its upload and its upgrade takes back what it brought, and nothing else.
func TestDiscard_TakesBackWhatNobodyStarts(t *testing.T) {
	r := newRig(t)
	r.push("1")
	r.push("2")
	r.install("3", env("WHICH", "first"))
	packed, err := r.pack("3", env("WHICH", "first"))
	if err != nil {
		t.Fatal(err)
	}
	st := r.status()
	for _, digest := range []string{packed.Digest, packed.Digest, st.Committed.Digest, st.Previous.Digest, strings.Repeat("0", 64)} {
		if err := r.client.Discard(r.ctx(), digest); err != nil {
			t.Errorf("%s: %v", digest, err)
		}
	}
	r.hasOnly("1", "2")
	if err := r.client.Discard(r.ctx(), "../1"); !errors.Is(err, api.ErrBadRequest) {
		t.Errorf("%v", err)
	}
	r.install("3", func(s *release.Spec) { s.Soak.Duration = release.Duration(300 * time.Millisecond) })
	if packed, err = r.pack("3", func(s *release.Spec) { s.Soak.Duration = release.Duration(300 * time.Millisecond) }); err != nil {
		t.Fatal(err)
	}
	u, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindPush, Version: "3", By: "tester"})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.client.Discard(r.ctx(), packed.Digest); err != nil { // it is being started
		t.Error(err)
	}
	if u = r.outcome(u.ID); u.Outcome != api.Done {
		t.Errorf("%s: %+v", u.Outcome, u.Error)
	}
	r.hasOnly("1", "2", "3")
}
