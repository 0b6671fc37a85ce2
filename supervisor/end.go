package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/config"
	"github.com/hotdeploy/hotdeploy/internal/procs"
	"github.com/hotdeploy/hotdeploy/supervisor/store"
	"github.com/hotdeploy/hotdeploy/systemd"
)

// This file ends what runs when no supervisor is there to do it. systemd leaves everything but the supervisor alone, so that a crash
// costs nobody a connection (KillMode=process); so a stop must be told from a crash, and be done by somebody. The unit runs
// `hotdeployd end` at three moments:
//
//	ExecStop       only at a stop or restart, and before the supervisor is told: Announce
//	ExecStopPost   whenever the supervisor has ended: End after a stop, LeaveBehind after a crash
//
// What is left behind is for a stop that finds no supervisor: between a crash and the restart systemd runs none of these.

// ResultSuccess is systemd's SERVICE_RESULT of a supervisor that ended because it was told to.
const ResultSuccess = "success"

func announcement(runDir string) string { return filepath.Join(runDir, "stop") }

// Announce notes that the service is about to be stopped.
func Announce(cfg config.Daemon) error {
	return writeNew(announcement(cfg.RunDir), nil)
}

// Announced tells whether it was.
func Announced(cfg config.Daemon) bool {
	_, err := os.Stat(announcement(cfg.RunDir))
	return err == nil
}

// End ends every process that a supervisor left: SIGTERM, the time that its release asks for, SIGKILL. The supervisor must have ended. With
// an error something may be left.
func End(ctx context.Context, cfg config.Daemon, logger *log.Logger) error {
	l, err := readLedger(cfg.RunDir, cfg.Service)
	if err != nil {
		logger.Printf("%v; ending what is in the unit's cgroup", err)
	}
	err = end(ctx, cfg, l, logger)
	return errors.Join(err, os.RemoveAll(announcement(cfg.RunDir)))
}

func end(ctx context.Context, cfg config.Daemon, l *ledger, logger *log.Logger) error {
	if l == nil {
		l = &ledger{}
	}
	var wg sync.WaitGroup
	errs := make([]error, len(l.Generations))
	var known []string
	var longest time.Duration
	for _, r := range l.Generations {
		known = append(known, r.Process.Cgroup)
		longest = max(longest, time.Duration(r.StopAfter))
	}
	defer extend(systemd.Notifier{}, longest+2*killTimeout, func() {})()
	for i, r := range l.Generations {
		wg.Go(func() { errs[i] = endLeft(ctx, r, logger) })
	}
	wg.Wait()
	for _, dir := range procs.Strays(unitCgroup(), generationCgroup, known) {
		g := procs.Stray(dir)
		logger.Printf("killing processes that no record tells of: %v", g.Pids())
		errs = append(errs, killGroup(ctx, g))
	}
	return errors.Join(append(errs, forgetGenerations(cfg, l))...)
}

func endLeft(ctx context.Context, r ledgerGeneration, logger *log.Logger) error {
	g, err := procs.Adopt(r.Process, nil)
	if err != nil {
		return err
	}
	if len(g.Pids()) > 0 {
		logger.Printf("generation %d (%s) is left: ending it", r.Number, r.Release.Version)
	}
	if !r.Told { // to many apps a second time means at once
		err = g.Signal(syscall.SIGTERM)
	}
	timer := time.NewTimer(time.Duration(r.StopAfter))
	defer timer.Stop()
	select {
	case <-g.Done():
	case <-timer.C:
		logger.Printf("generation %d (%s) did not end within %s: killing it", r.Number, r.Release.Version, r.StopAfter)
	case <-ctx.Done():
	}
	return errors.Join(err, killGroup(context.WithoutCancel(ctx), g))
}

func killGroup(ctx context.Context, g *procs.Group) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	return errors.Join(g.Signal(syscall.SIGKILL), g.Kill(ctx), g.Remove())
}

// unitCgroup is where the supervisor made the cgroups of its generations; systemd runs us beside it.
func unitCgroup() string {
	dir, err := procs.OwnCgroup()
	if err != nil {
		return procs.NoCgroup
	}
	if filepath.Base(dir) == ".control" {
		return filepath.Dir(dir)
	}
	return dir
}

// forgetGenerations leaves the listeners to the next supervisor.
func forgetGenerations(cfg config.Daemon, l *ledger) error {
	if _, err := os.Stat(cfg.RunDir); l.Format == 0 || err != nil {
		return os.RemoveAll(ledgerPath(cfg.RunDir))
	}
	l.Generations, l.Held, l.Serving, l.Upgrade = nil, nil, 0, nil
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return writeLedger(cfg.RunDir, b)
}

// awaitName is under which name the fd store holds one end of a line. It closes when the unit has stopped. The supervisor that is
// passed it first says a word.
const awaitName = "await.line"

// lockWithin is how long a waiter that has had its word may take to end.
const lockWithin = time.Second

// LeaveBehind is for after a crash: it starts argv, which calls Await, with one end of that line. One such process is enough.
func LeaveBehind(ctx context.Context, cfg config.Daemon, argv []string) error {
	lock, err := lockSoon(ctx, filepath.Join(cfg.RunDir, "await.lock"))
	if errors.Is(err, store.ErrLocked) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "line"), os.NewFile(uintptr(fds[1]), "line")
	defer ours.Close()
	err = systemd.FDStore{}.Put(awaitName, theirs)
	theirs.Close()
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if err := errors.Join(err, systemd.Notifier{}.Barrier(ctx)); err != nil {
		return err
	}
	p := []unix.PollFd{{Fd: int32(fds[0]), Events: unix.POLLIN}}
	if n, _ := unix.Poll(p, 0); n != 0 {
		return errors.New("systemd keeps no descriptors for this unit (FileDescriptorStoreMax=)")
	}
	return startWaiter(ctx, argv, ours, lock)
}

// startWaiter returns when the process waits, and knows all that it has to: what that is written in goes with the unit.
func startWaiter(ctx context.Context, argv []string, line, lock *os.File) error {
	waits, says, err := os.Pipe()
	if err != nil {
		return err
	}
	defer waits.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stdout, os.Stderr, []*os.File{line, lock, says}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	says.Close()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { waits.SetReadDeadline(time.Unix(1, 0)) })()
	if n, err := waits.Read(make([]byte, 1)); n != 1 {
		return errors.Join(fmt.Errorf("the process that is to wait for a stop does not: %w", err), cmd.Process.Kill())
	}
	return cmd.Process.Release()
}

// lockSoon is store.Lock for a file that whoever has it may be about to let go of.
func lockSoon(ctx context.Context, path string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, lockWithin)
	defer cancel()
	again := time.NewTicker(lockWithin / 50)
	defer again.Stop()
	for {
		lock, err := store.Lock(path)
		if !errors.Is(err, store.ErrLocked) {
			return lock, err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return nil, err
		}
	}
}

// Await waits at the line that it inherited. It ends what runs if the unit is stopped while there is no supervisor, and returns when one
// is there again.
func Await(ctx context.Context, cfg config.Daemon, logger *log.Logger) error {
	line, lock, says := os.NewFile(3, "line"), os.NewFile(4, "lock"), os.NewFile(5, "says")
	defer lock.Close()
	defer line.Close()
	l, err := readLedger(cfg.RunDir, cfg.Service) // the folder goes with the unit
	if err != nil {
		logger.Printf("%v", err)
	}
	says.Write([]byte{1}) // whoever waits for it may have been killed
	says.Close()
	if n, _ := line.Read(make([]byte, 1)); n == 1 {
		return nil
	}
	logger.Printf("the service was stopped while it had no supervisor: ending what runs")
	return end(ctx, cfg, l, logger)
}
