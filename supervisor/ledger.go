package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/procs"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/internal/sockets"
	"github.com/hotdeploy/hotdeploy/supervisor/store"
	"github.com/hotdeploy/hotdeploy/systemd"
	"github.com/hotdeploy/hotdeploy/upgrade/control"
)

// The ledger is what a supervisor leaves to the next one: what runs now, in words that go with the descriptors in systemd's fd store. It
// lies in the run directory, since it means nothing after a reboot, and is replaced by rename, without a sync: a killed process
// loses nothing by that. What is committed is not its business: that is in the store's state, which decides where the two differ.
//
// What is always true, so that a supervisor can be killed at any instruction:
//   - No process becomes an app before it is in the ledger (procs.Spec.Born). One that is not in it ends by itself.
//   - Whatever is done to a generation is in the ledger before it is done (drain, handoff); done twice it does no harm.
//   - A descriptor is in the fd store before the ledger names it, and is taken out after that. What the ledger does not name is rubbish.
//   - A notification is in the ledger before it leaves the socket's queue.

// LedgerFormat is the form of the ledger that this code writes; it refuses newer ones.
const LedgerFormat = 1

const maxLedgerBytes = 16 << 20

// What is wrong with a ledger. Such an error's text names the file and says what to type.
var (
	ErrLedgerDamaged = errors.New("the record of what runs is damaged")
	ErrLedgerNewer   = errors.New("the record of what runs was written by a newer hotdeployd")
)

func ledgerPath(runDir string) string { return filepath.Join(runDir, "running.json") }

type ledger struct {
	Format      int                `json:"format"`
	Service     string             `json:"service"`
	BootID      string             `json:"boot_id"`
	Daemon      string             `json:"daemon"` // version of whoever wrote it
	PID         int                `json:"pid"`    // of whoever wrote it
	Listeners   []ledgerListener   `json:"listeners,omitempty"`
	Held        []int              `json:"held,omitempty"` // those of the committed release
	Generations []ledgerGeneration `json:"generations,omitempty"`
	Serving     int                `json:"serving,omitempty"`
	Upgrade     *ledgerUpgrade     `json:"upgrade,omitempty"` // in flight
	Handoffs    int64              `json:"handoffs,omitempty"`
	Keeper      ledgerKeeper       `json:"keeper"`
}

type ledgerListener struct {
	ID      int              `json:"id"`
	As      release.Listener `json:"as"`
	Socket  sockets.Record   `json:"socket"`
	Systemd bool             `json:"systemd,omitempty"` // bound by a .socket unit
}

type ledgerGeneration struct {
	Number    int              `json:"number"`
	Release   release.Ref      `json:"release"`
	Process   procs.Record     `json:"process"`
	StopAfter release.Duration `json:"stop_after"` // for whoever must end it without its manifest
	Listeners []int            `json:"listeners,omitempty"`
	State     string           `json:"state"`
	Started   time.Time        `json:"started"`
	SaidReady bool             `json:"said_ready,omitempty"`
	Ready     *time.Time       `json:"ready,omitempty"`
	Draining  *time.Time       `json:"draining,omitempty"`
	Deadline  *time.Time       `json:"deadline,omitempty"`
	Told      bool             `json:"told,omitempty"` // to finish, by SIGTERM
	Failed    bool             `json:"failed,omitempty"`
	Text      string           `json:"text,omitempty"`
	Hello     *control.Message `json:"hello,omitempty"`
	Handoff   *api.Handoff     `json:"handoff,omitempty"`
}

type ledgerUpgrade struct {
	Record    api.Upgrade `json:"record"`
	Committed bool        `json:"committed,omitempty"`
	Gave      int         `json:"gave,omitempty"`  // the generation that gave its connections away for it
	Error     *api.Error  `json:"error,omitempty"` // it has failed and is being taken back
}

type ledgerKeeper struct {
	Attempts    int       `json:"attempts,omitempty"`
	Crashes     int       `json:"crashes,omitempty"`
	ServingFrom time.Time `json:"serving_from"`
	Upgraded    time.Time `json:"upgraded"`
}

// record writes down what is so now, if it is not what was written last. On the loop, and called there after everything that happens on
// it: a small file in memory, for which the loop may wait.
func (s *Supervisor) record() error {
	if s.recordNothing {
		return nil
	}
	b, err := json.Marshal(s.ledger())
	if err != nil {
		return fmt.Errorf("record what runs: %w", err)
	}
	if bytes.Equal(b, s.recorded) {
		return nil
	}
	if err := writeLedger(s.opt.Config.RunDir, b); err != nil {
		if s.recordFailure != err.Error() {
			s.recordFailure = err.Error()
			s.logf("record what runs, for the case that this supervisor is killed: %v", err)
		}
		return fmt.Errorf("record what runs: %w", err)
	}
	s.recorded, s.recordFailure = b, ""
	return nil
}

// writeLedger leaves the file before it in its place if it fails.
func writeLedger(runDir string, b []byte) error {
	path := ledgerPath(runDir)
	temp := path + ".new" // there is one writer
	err := writeNew(temp, b)
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		os.Remove(temp)
	}
	return err
}

// writeNew makes a file in a folder where the app may put anything: a link to somewhere else, or a pipe that nobody reads, is replaced.
func writeNew(path string, b []byte) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

// ledger is the state of things. On the loop.
func (s *Supervisor) ledger() *ledger {
	l := &ledger{Format: LedgerFormat, Service: s.opt.Config.Service, BootID: s.bootID, Daemon: s.opt.Version, PID: os.Getpid(), Handoffs: s.handoffs.Load(),
		Keeper: ledgerKeeper{s.keeper.attempts, s.keeper.crashes, s.keeper.servingFrom, s.keeper.upgraded}}
	for _, k := range s.listeners.open {
		l.Listeners = append(l.Listeners, ledgerListener{ID: k.id, As: k.as, Socket: k.recorded, Systemd: k.fromSystemd})
	}
	l.Held = idsOf(s.held)
	for _, g := range s.ordered() {
		l.Generations = append(l.Generations, g.ledger())
	}
	if s.serving != nil {
		l.Serving = s.serving.number
	}
	if u := s.busy; u != nil {
		l.Upgrade = &ledgerUpgrade{Record: u.copied(), Committed: u.committed, Error: u.failure}
		if u.gave != nil {
			l.Upgrade.Gave = u.gave.number
		}
	}
	return l
}

func (g *generation) ledger() ledgerGeneration {
	return ledgerGeneration{Number: g.number, Release: g.rel.Ref, Process: g.group.Record(), StopAfter: g.rel.Manifest.Spec.Run.StopAfter,
		Listeners: idsOf(g.sockets), State: g.state, Started: g.started, SaidReady: g.saidReady, Ready: g.readyAt, Draining: g.draining,
		Deadline: g.deadline, Told: g.told, Failed: g.failed, Text: g.text, Hello: g.line.hello, Handoff: g.handoff}
}

func idsOf(ks []*socket) []int {
	ids := make([]int, len(ks))
	for i, k := range ks {
		ids[i] = k.id
	}
	return ids
}

// readLedger returns nil where there is none, or one of an earlier boot.
func readLedger(runDir, service string) (*ledger, error) {
	path := ledgerPath(runDir)
	b, err := readRegular(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil && !errors.Is(err, ErrLedgerDamaged) {
		return nil, fmt.Errorf("read what runs: %w", err)
	}
	var l *ledger
	if err == nil {
		l, err = decodeLedger(b, service)
	}
	if errors.Is(err, ErrLedgerNewer) {
		return nil, fmt.Errorf("%s: %w: install that hotdeployd again, or stop the service before this one takes over (systemctl stop %s)", path, err, service)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w; to go on, which ends what runs, type:\n\tsystemctl stop %s; rm -rf %s; systemctl start %s", path, err, service, path, service)
	}
	boot, err := store.BootID()
	if err != nil {
		return nil, err
	}
	if l.BootID != boot {
		return nil, nil
	}
	return l, nil
}

// readRegular reads a file in a folder where the app may put anything: a pipe would never end, a link leads elsewhere.
func readRegular(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) { // a link, a socket
		return nil, fmt.Errorf("%w: it is no file", ErrLedgerDamaged)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: it is no file", ErrLedgerDamaged)
	}
	return io.ReadAll(io.LimitReader(f, maxLedgerBytes+1))
}

func decodeLedger(b []byte, service string) (*ledger, error) {
	var l ledger
	if len(b) > maxLedgerBytes {
		return nil, fmt.Errorf("%w: it has more than %d bytes", ErrLedgerDamaged, maxLedgerBytes)
	}
	var head struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLedgerDamaged, err)
	}
	if head.Format > LedgerFormat {
		return nil, fmt.Errorf("%w (format %d, known up to %d)", ErrLedgerNewer, head.Format, LedgerFormat)
	}
	if err := json.Unmarshal(b, &l); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLedgerDamaged, err)
	}
	if err := l.check(service); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLedgerDamaged, err)
	}
	return &l, nil
}

// check sees to it that whoever adopts can rely on what refers to what.
func (l *ledger) check(service string) error {
	if l.Format < 1 || l.Service != service || l.BootID == "" {
		return fmt.Errorf("format %d, service %q, boot %q", l.Format, l.Service, l.BootID)
	}
	listeners, generations := map[int]bool{}, map[int]bool{}
	for _, k := range l.Listeners {
		if k.ID < 1 || listeners[k.ID] {
			return fmt.Errorf("listener %d", k.ID)
		}
		listeners[k.ID] = true
	}
	known := func(ids []int) error {
		for _, id := range ids {
			if !listeners[id] {
				return fmt.Errorf("there is no listener %d", id)
			}
		}
		return nil
	}
	for _, g := range l.Generations {
		if g.Number < 1 || generations[g.Number] || g.Process.Pid <= 1 || (g.State == api.GenDraining && g.Draining == nil) {
			return fmt.Errorf("generation %d", g.Number)
		}
		if err := errors.Join(release.CheckVersion(g.Release.Version), release.CheckDigest(g.Release.Digest), known(g.Listeners)); err != nil {
			return fmt.Errorf("generation %d: %w", g.Number, err)
		}
		generations[g.Number] = true
	}
	if l.Serving != 0 && !generations[l.Serving] {
		return fmt.Errorf("there is no generation %d", l.Serving)
	}
	if u := l.Upgrade; u != nil {
		if err := errors.Join(release.CheckVersion(u.Record.To.Version), release.CheckDigest(u.Record.To.Digest)); err != nil || u.Record.ID == "" {
			return fmt.Errorf("upgrade %q: %w", u.Record.ID, err)
		}
	}
	return known(l.Held)
}

// The names of descriptors in the fd store.
const notifyName = "notify.sock"

func listenerName(id int) string        { return fmt.Sprintf("listener.%d", id) }
func processName(generation int) string { return fmt.Sprintf("process.%d", generation) }
func controlName(generation int) string { return fmt.Sprintf("control.%d", generation) }

// keep puts a descriptor into the fd store, unkeep takes it out. That it fails is no reason to stop: only a crash would miss it.
func (s *Supervisor) keep(name string, f syscall.Conn) {
	if err := (systemd.FDStore{}).Put(name, f); err != nil {
		s.logf("%v", err)
	}
}

// unkeepClosed waits until systemd has closed what was closed here: only then clients are refused, and the address is free.
func (s *Supervisor) unkeepClosed() {
	s.unkeepMu.Lock()
	defer s.unkeepMu.Unlock()
	var names []string
	s.do(func() { names, s.closed = s.closed, nil })
	if len(names) == 0 {
		return
	}
	s.unkeep(names...)
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	if err := s.notify.Barrier(ctx); err != nil {
		s.logf("%v", err)
	}
}

// What cannot be taken out now, for want of a descriptor, is when something else is: no name is used twice.
func (s *Supervisor) unkeep(names ...string) {
	s.stuckMu.Lock()
	defer s.stuckMu.Unlock()
	names, s.stuck = append(s.stuck, names...), nil
	for _, name := range names {
		if err := (systemd.FDStore{}).Remove(name); err != nil {
			s.logf("%v", err)
			s.stuck = append(s.stuck, name)
		}
	}
}
