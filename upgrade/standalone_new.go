package upgrade

import (
	"errors"
	"os"

	ctl "github.com/hotdeploy/hotdeploy/upgrade/control"
)

// This file is the process that follows another one.

// ready is Ready: the process before us, if there is one, is to give us what it has.
func (s *standalone) ready(first bool) error {
	switch {
	case !first:
		return nil
	case s.first:
		return errors.Join(s.commit(), notify("READY=1"))
	}
	failpoint("alone.ready")
	ours, theirs, err := ctl.Pair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	s.u.control = ours
	go s.orphaned()
	if err := s.knock.Send(s.u.helloMessage(), theirs, controlTime); err != nil {
		return err
	}
	failpoint("alone.knocked")
	go s.u.obey()
	return nil
}

// obey acts on what only a process without a supervisor is told.
func (s *standalone) obey(m ctl.Message) {
	switch m.Type {
	case ctl.Commit:
		failpoint("alone.commit")
		if err := s.commit(); err != nil {
			s.u.opt.Log("upgrade: %v", err)
		}
	case ctl.Upgrade:
		select {
		case s.hup <- nil:
		default: // one is waiting already
		}
	}
}

// orphaned waits for the end of the process before us. If that was no proper one, what it had offered is ours, and the sockets are.
func (s *standalone) orphaned() {
	s.flip.WaitForParent(s.ctx)
	if s.ctx.Err() != nil {
		return
	}
	s.committing.Do(func() {
		s.u.opt.Log("upgrade: the process before this one has ended: pid %d goes on", os.Getpid())
		s.serve() // an error is that there is nobody to tell
		s.announce(os.Getpid())
	})
}

// commit is our turn: the process before us has let go, or never was.
func (s *standalone) commit() (err error) {
	s.committing.Do(func() { err = s.serve() })
	return err
}

func (s *standalone) serve() error {
	s.u.open()
	err := s.flip.Ready()
	go s.run() // not before: tableflip makes no new process for one that is not ready
	return err
}
