package supervisor

import "github.com/hotdeploy/hotdeploy/systemd"

// teller talks to systemd for the loop, which must not wait when PID 1 is busy with itself.
type teller struct {
	notify systemd.Notifier
	texts  chan string   // the newest status text; capacity one
	alive  chan struct{} // the loop turns; capacity one
}

func newTeller() *teller {
	return &teller{texts: make(chan string, 1), alive: make(chan struct{}, 1)}
}

// status replaces the text. For the loop only.
func (t *teller) status(text string) {
	select {
	case <-t.texts: // that one is out of date
	default:
	}
	t.texts <- text
}

// watchdog feeds systemd's watchdog.
func (t *teller) watchdog() {
	select {
	case t.alive <- struct{}{}:
	default:
	}
}

// run ends with done.
func (t *teller) run(done <-chan struct{}, logf func(string, ...any)) {
	for {
		var err error
		select {
		case text := <-t.texts:
			err = t.notify.Status(text)
		case <-t.alive:
			err = t.notify.Watchdog()
		case <-done:
			return
		}
		if err != nil {
			logf("%v", err)
		}
	}
}
