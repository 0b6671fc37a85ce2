package systemd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
)

// manager is systemd, through D-Bus.
type manager struct{ *dbus.Conn }

func connectManager(ctx context.Context) (*manager, error) {
	// The folder that sd_booted looks for; a bus alone could be a container's.
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return nil, ErrNoSystemd
	}
	conn, err := dbus.NewWithContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("reach systemd through D-Bus: %w", err)
	}
	return &manager{conn}, nil
}

// unitState is what systemd knows of a name.
type unitState struct {
	ID     string // differs from the name that was asked for where that is an alias
	Load   string // loaded, not-found, masked, error, …
	Path   string
	Active string
	Reload bool      // the file is newer than what systemd has read
	since  time.Time // it became active
}

func (u unitState) exists() bool { return u.Load != "not-found" || u.Path != "" }

func (u unitState) active() bool {
	switch u.Active {
	case "active", "activating", "reloading", "deactivating":
		return true
	}
	return false
}

func (m *manager) state(ctx context.Context, name string) (unitState, error) {
	props, err := m.GetUnitPropertiesContext(ctx, name)
	if err != nil {
		return unitState{}, fmt.Errorf("ask systemd about %s: %w", name, err)
	}
	var u unitState
	u.ID, _ = props["Id"].(string)
	u.Load, _ = props["LoadState"].(string)
	u.Path, _ = props["FragmentPath"].(string)
	u.Active, _ = props["ActiveState"].(string)
	u.Reload, _ = props["NeedDaemonReload"].(bool)
	usec, _ := props["ActiveEnterTimestamp"].(uint64)
	u.since = time.UnixMicro(int64(usec))
	return u, nil
}

// running is the main process of a service.
type running struct {
	active  bool
	mainPID uint32
	since   time.Time // when that process began
	applied time.Time // when systemd applied the unit last, to this process or to one that made way for it
}

func (m *manager) running(ctx context.Context, name string) (running, error) {
	state, err := m.state(ctx, name)
	if err != nil || state.Active != "active" {
		return running{}, err
	}
	props, err := m.GetUnitTypePropertiesContext(ctx, name, "Service")
	if err != nil {
		return running{}, fmt.Errorf("ask systemd about %s: %w", name, err)
	}
	run := running{active: true}
	run.mainPID, _ = props["MainPID"].(uint32)
	usec, _ := props["ExecMainStartTimestamp"].(uint64)
	run.since = time.UnixMicro(int64(usec))
	run.applied = state.since
	return run, nil
}

// reload makes systemd read the units where it has not.
func (s *setup) reload(ctx context.Context) error {
	for _, u := range s.units {
		state, err := s.bus.state(ctx, u.Name)
		if err != nil {
			return err
		}
		if state.Reload || !state.exists() {
			return s.bus.reload(ctx)
		}
	}
	return nil
}

func (m *manager) reload(ctx context.Context) error {
	if err := m.ReloadContext(ctx); err != nil {
		return fmt.Errorf("have systemd read the units: %w", err)
	}
	return nil
}

func (s *setup) enable(ctx context.Context) error {
	if !s.spec.Enable {
		return nil
	}
	var names []string
	for _, u := range s.units {
		names = append(names, u.Name)
	}
	_, links, err := s.bus.EnableUnitFilesContext(ctx, names, false, false)
	if err != nil {
		return fmt.Errorf("enable %s: %w", names[0], err)
	}
	if len(links) == 0 {
		return nil
	}
	for _, l := range links {
		s.changed("enabled %s", filepath.Base(l.Filename))
	}
	return s.bus.reload(ctx)
}

// start begins with the sockets: a service that comes first cannot be given
// them any more.
func (s *setup) start(ctx context.Context) error {
	if !s.spec.Start {
		return nil
	}
	service, sockets := s.units[0].Name, s.units[1:]
	for _, u := range sockets {
		state, err := s.bus.state(ctx, u.Name)
		if err != nil {
			return err
		}
		if !state.active() && s.before.active() {
			s.restartNeeded("%s cannot be bound while the service runs without it", u.Name)
			continue
		}
		if err := s.startUnit(ctx, u.Name); err != nil {
			return err
		}
	}
	return s.startUnit(ctx, service)
}

func (s *setup) startUnit(ctx context.Context, name string) error {
	state, err := s.bus.state(ctx, name)
	if err != nil || state.active() {
		return err
	}
	done := make(chan string, 1)
	if _, err := s.bus.StartUnitContext(ctx, name, "replace", done); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("start %s: %s; see why with  journalctl -u %s", name, result, name)
		}
	case <-ctx.Done():
		return fmt.Errorf("start %s: no answer yet: %w", name, context.Cause(ctx))
	}
	s.changed("started %s", name)
	return nil
}
