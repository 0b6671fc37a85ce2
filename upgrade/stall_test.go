package upgrade

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A machine may stand still for longer than the other side may take to answer. When it goes on the answers are there, waiting to be read: who
// looks at the clock first must not take its own absence for the other one's.
func TestHandoff_GiverStandsStillForAWhile_TheTakerIsNotBlamed(t *testing.T) {
	const n = 20
	for _, mode := range []Mode{Rolling, Barrier} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			env := "UPGRADE_TEST_MODE=" + string(mode)
			old := s.start("lines", env, "UPGRADE_FAILPOINT=give.offered=pause")
			c := dialCrowd(t, s.ln.Addr().String(), "lines", n, 0)
			next := s.start("lines", env)
			s.order(old, next, patience)
			old.await(t, "failpoint give.offered")
			<-time.After(hungTime + hungTime/hungTicks) // that is the stall
			old.cmd.Process.Signal(unix.SIGCONT)
			m := s.given(old)
			if m.PeerHangs || m.Moved == 0 || m.Moved+m.Kept[string(ReasonBusy)] != n { // who was not told before had no time left
				t.Errorf("%+v", m)
			}
			c.talk(t)
		})
	}
}
