package remote

import (
	"fmt"
	"io/fs"
	"net"
	"path"
	"strconv"
	"strings"

	"github.com/hotdeploy/hotdeploy/internal/config"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/systemd"
)

// SetupWishes are the operator's flags; what is empty has the default of package systemd.
type SetupWishes struct {
	User, Root       string
	DeployUsers      []string // may push: members of the service's group
	ReadJournal      bool     // and may read the host's journal, so that they see what the app says
	SocketActivation bool     // systemd binds the listeners
}

// SpecFor derives what a host must have from what the project says of its listeners.
func SpecFor(p *config.Project, w SetupWishes) (systemd.SetupSpec, error) {
	spec := systemd.SetupSpec{UnitSpec: systemd.UnitSpec{Service: p.Service, User: w.User, Root: w.Root}}
	spec.DeployGroupMembers, spec.ReadJournal, spec.Enable, spec.Start = w.DeployUsers, w.ReadJournal, true, true
	filled := spec.WithDefaults()
	daemon := config.NewDaemon(p.Service)
	daemon.Root, daemon.User = filled.Root, filled.User
	text, err := daemon.Encode()
	if err != nil {
		return spec, fmt.Errorf("the daemon's configuration: %w", err)
	}
	spec.ConfigText = string(text)
	for _, l := range p.Listeners {
		if err := addListener(&spec, l, filled.Root, w.SocketActivation); err != nil {
			return spec, fmt.Errorf("listener %s: %w", l.Name, err)
		}
	}
	return spec, nil
}

const capBind = "CAP_NET_BIND_SERVICE"

func addListener(spec *systemd.SetupSpec, l release.Listener, root string, activation bool) error {
	if l.Network == "unix" && !path.IsAbs(l.Address) {
		l.Address = path.Join("/run", spec.Service, l.Address) // as the daemon reads it
	}
	if activation {
		mode, err := socketMode(l.Mode)
		if err != nil {
			return err
		}
		spec.Sockets = append(spec.Sockets, systemd.SocketSpec{Name: l.Name, Network: l.Network, Address: l.Address, Mode: mode})
		return nil
	}
	if l.Network == "unix" {
		if dir := path.Dir(l.Address); !below(dir, root) && !below(dir, "/run/"+spec.Service) {
			spec.ReadWritePaths = append(spec.ReadWritePaths, dir)
		}
		return nil
	}
	if isPrivileged(l.Address) && len(spec.Capabilities) == 0 {
		spec.Capabilities = []string{capBind}
	}
	return nil
}

func socketMode(text string) (fs.FileMode, error) {
	if text == "" {
		return 0, nil
	}
	mode, err := strconv.ParseUint(text, 8, 9)
	if err != nil {
		return 0, fmt.Errorf("mode %q is not octal permissions", text)
	}
	return fs.FileMode(mode), nil
}

func below(dir, root string) bool { return dir == root || strings.HasPrefix(dir, root+"/") }

// isPrivileged tells whether a port is one that only root may bind, as Linux is set up everywhere.
func isPrivileged(address string) bool {
	_, text, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	port, err := strconv.Atoi(text)
	return err == nil && port > 0 && port < 1024
}
