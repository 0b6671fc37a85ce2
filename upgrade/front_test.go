package upgrade

import (
	"os"
	"testing"
	"time"

	ctl "github.com/hotdeploy/hotdeploy/upgrade/control"
)

// On a machine with too much to do a whole upgrade happens between two instructions of the front.
func TestFront_WhoHasEndedHadSaidWhoFollows(t *testing.T) {
	ours, theirs, err := ctl.Files()
	if err != nil {
		t.Fatal(err)
	}
	line, err := ctl.NewConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	defer line.Close()
	app, err := ctl.NewConn(theirs)
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	const first = 1 << 30 // no process
	f := &front{line: line, gone: make(chan int, 1), polite: map[int]bool{}, current: first, alive: []int{first}}
	f.line.Pending(f.heed)
	for _, m := range []ctl.Message{{Type: ctl.Commit, ID: os.Getpid()}, {Type: ctl.Proceed, ID: first}} {
		if err := app.Send(m, nil, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	f.reaped(first, 0)
	if f.over || f.current != os.Getpid() || len(f.alive) != 1 {
		t.Errorf("over %t, current %d, alive %v", f.over, f.current, f.alive)
	}
}
