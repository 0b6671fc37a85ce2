package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/testdata/apps"
	"github.com/hotdeploy/hotdeploy/testdata/load"
)

// held is how many WebSockets go through all of it.
const held = 200

// servedBy waits until every WebSocket has been answered by that version since now, and fails the test if one has been closed.
func servedBy(t *testing.T, l *load.Load, version string) {
	t.Helper()
	beat(t, l)
	if r := l.Snapshot(); r.Versions[version] != held || r.Closed > 0 {
		t.Errorf("%d are closed, the others are served by %v; want all %d by %s", r.Closed, r.Versions, held, version)
	}
}

// movedAll checks what the host says of a move of all of them.
func movedAll(t *testing.T, h *api.Handoff) {
	t.Helper()
	if h == nil || h.Moved < held || h.Refused > 0 || h.LongestPause <= 0 {
		t.Errorf("the host says %+v", h)
	}
}

// Every way back is a move like the way there: rolled back by hand, unhealthy in the soak, retired. None of the clients is closed, no message is lost,
// and what is left behind has nothing left and ends at once.
func TestLive_EveryWayBack_NobodyNotices(t *testing.T) {
	s := newService(t, common())
	s.place(apps.Build(t, "wslive", "", ""), "bin/wsecho")
	s.push("1").want(0)
	l := s.load(load.Options{WebSockets: held, NewConnsPerSecond: 100, MessageInterval: 50 * time.Millisecond, Held: load.MayMove})

	s.push("2").want(0).wantText("handoff", "moved 2", "longest pause", "connections moved")
	servedBy(t, l, "2")
	movedAll(t, s.status().Last.Handoff)
	s.ended(1)

	s.hotdeploy("rollback", s.host).want(0).wantText("moved 2")
	servedBy(t, l, "1")
	s.ended(2)

	c := s.push("3", env(`WSLIVE_UNHEALTHY = "1"`), soak("10s"), more("[health]\ncheck = \"http\"\npath = \"/healthz\"\ninterval = \"100ms\"")).want(4)
	c.wantText("unhealthy", "back", "1 is serving").oneScreen()
	t.Logf("%s", c)
	servedBy(t, l, "1")
	movedAll(t, s.status().Last.Handoff)
	movedAll(t, s.status().Last.HandedBack)
	s.ended(4)

	// 5 cannot read what 1 saves: its connections stay with 1, until somebody can have them again.
	c = s.push("5", env(`WSLIVE_STATE = "2"`)).want(0)
	c.wantText(fmt.Sprintf("5 cannot read the state of %d connections that 1 has saved", held), "they finish in generation 3").oneScreen()
	t.Logf("%s", c)
	servedBy(t, l, "1")
	s.hotdeploy("rollback", s.host).want(0)
	servedBy(t, l, "1")
	s.hotdeploy("retire", s.host, "3").want(0)
	s.ended(3)
	servedBy(t, l, "1")

	text := s.hotdeploy("history", s.host).want(0).wantText("rolled back", "back: moved 2", "state version 200").text()
	status := s.hotdeploy("status", s.host).want(0).wantText("took 200 from generation 3").text()
	t.Logf("%s%s", text, status)
	r := unnoticed(t, l)
	if r.Changed != held || r.Kept != held {
		t.Errorf("%d of %d have changed process, %d were kept", r.Changed, held, r.Kept)
	}
	if journal := s.vm.Journal(s.service); strings.Contains(journal, "closing its connections") || strings.Contains(journal, "killing") {
		t.Error("a generation had to be helped to its end")
	}
	t.Logf("%s", r)
}

// ended waits until a generation has ended, which it does when nothing is left in it.
func (s *service) ended(generation int) {
	s.t.Helper()
	until(s.t, fmt.Sprintf("generation %d has ended", generation), func() bool {
		for _, g := range s.status().Generations {
			if g.Number == generation {
				return false
			}
		}
		return true
	})
}
