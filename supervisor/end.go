package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"log"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

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
//	ExecStopPost   whenever the supervisor has ended: End after a stop, Await after a crash
//
// Await is for a stop that finds no supervisor: between a crash and the restart systemd runs none of these.

// ResultSuccess is systemd's SERVICE_RESULT of a supervisor that ended because it was told to.
const ResultSuccess = "success"

// awaitSupervisor is how long generations go on without any supervisor.
const awaitSupervisor = 30 * time.Second

func announcement(runDir string) string { return filepath.Join(runDir, "stop") }

// Announce notes that the service is about to be stopped.
func Announce(cfg config.Daemon) error {
	return os.WriteFile(announcement(cfg.RunDir), nil, 0o600)
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
	(systemd.Notifier{}).ExtendTimeout(longest + 2*killTimeout)
	for i, r := range l.Generations {
		wg.Go(func() { errs[i] = endLeft(ctx, r, logger) })
	}
	wg.Wait()
	for _, dir := range procs.Strays(unitCgroup(), generationCgroup, known) {
		g := procs.Stray(dir)
		logger.Printf("killing processes that no record tells of: %v", g.Pids())
		errs = append(errs, killGroup(ctx, g))
	}
	return errors.Join(append(errs, forgetGenerations(cfg, l), os.RemoveAll(announcement(cfg.RunDir)))...)
}

func endLeft(ctx context.Context, r ledgerGeneration, logger *log.Logger) error {
	g, err := procs.Adopt(r.Process, nil)
	if err != nil {
		return err
	}
	if len(g.Pids()) > 0 {
		logger.Printf("generation %d (%s) is left: ending it", r.Number, r.Release.Version)
	}
	err = g.Signal(syscall.SIGTERM)
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
	if l.Format == 0 {
		return os.RemoveAll(ledgerPath(cfg.RunDir))
	}
	l.Generations, l.Held, l.Serving, l.Upgrade = nil, nil, 0, nil
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return writeLedger(cfg.RunDir, b)
}

// Await returns nil when a supervisor is there again. Where none comes for a while the service was stopped, or given up: then it ends
// what is left.
func Await(ctx context.Context, cfg config.Daemon, logger *log.Logger) error {
	limit := time.NewTimer(awaitSupervisor)
	defer limit.Stop()
	tick := time.NewTicker(time.Second / 4)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if store.Busy(cfg.Root) {
				return nil
			}
		case <-limit.C:
			logger.Printf("no supervisor came back within %s: ending what runs", awaitSupervisor)
			return End(ctx, cfg, logger)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
