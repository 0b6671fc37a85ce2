package systemd

import (
	"bufio"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/unit"
)

// maxStored is how many descriptors systemd keeps: two for each generation, and the listeners.
const maxStored = 1024

// UnitFile is the name and the text of one unit.
type UnitFile struct {
	Name string // chat.service
	Text string
}

// option is one line of a unit; several of them under one comment make a
// group, several groups a section. Values are escaped by who makes them.
type option struct{ name, value string }

type group struct {
	comment string
	options []option
}

type section struct {
	name   string
	groups []group
}

// Units returns the service unit, then one socket unit for each of Sockets:
// systemd knows one FileDescriptorName per socket unit. Defaults are filled in.
func Units(spec UnitSpec) ([]UnitFile, error) {
	spec = spec.WithDefaults()
	text, err := ServiceUnit(spec)
	if err != nil {
		return nil, err
	}
	units := []UnitFile{{serviceUnitName(spec), text}}
	for _, sock := range spec.Sockets {
		text, err := SocketUnit(spec, sock.Name)
		if err != nil {
			return nil, err
		}
		units = append(units, UnitFile{socketUnitName(spec, sock), text})
	}
	return units, nil
}

// ServiceUnit returns the text of <service>.service, with defaults filled in.
func ServiceUnit(spec UnitSpec) (string, error) {
	spec = spec.WithDefaults()
	if err := spec.Validate(); err != nil {
		return "", err
	}
	return unitText(spec, []section{
		{"Unit", []group{{"", []option{
			{"Description", escapePercent(spec.Description)},
			{"Wants", "network-online.target"},
			{"After", "network-online.target"},
			{"StartLimitIntervalSec", "0"},
		}}}},
		{"Service", append(serviceGroups(spec), sandboxGroups(spec)...)},
		{"Install", []group{{"", []option{{"WantedBy", "multi-user.target"}}}}},
	}), nil
}

func serviceGroups(spec UnitSpec) []group {
	start := fmt.Sprintf("%s run --config %s", escapePercent(spec.DaemonPath), escapePercent(spec.ConfigPath))
	life := []option{
		{"Type", "notify"},
		{"NotifyAccess", "exec"},
		{"ExecStart", start},
		{"Restart", "always"},
		{"RestartSec", "500ms"},
		{"TimeoutStopSec", seconds(spec.StopTimeout)},
		{"WatchdogSec", seconds(spec.Watchdog)},
		{"TimeoutAbortSec", "10s"}, // one that hangs so much that it cannot even die
	}
	for _, sock := range spec.Sockets {
		life = append(life, option{"Sockets", socketUnitName(spec, sock)})
	}
	end := fmt.Sprintf("%s end --config %s", escapePercent(spec.DaemonPath), escapePercent(spec.ConfigPath))
	return []group{
		{"A supervisor that is gone comes back, however often.", life},
		{"Its end is not that of the app: the next supervisor goes on with what runs, by the descriptors that\n" +
			"systemd keeps meanwhile. A stop ends everything, also when the supervisor cannot.", []option{
			{"KillMode", "process"},
			{"FileDescriptorStoreMax", strconv.Itoa(maxStored)},
			{"ExecStop", end + " --announce"},
			{"ExecStopPost", end},
		}},
		{"Who it is. Generations get cgroups of their own below the delegated one, and an app that\n" +
			"runs out of memory must not take the others with it.", []option{
			{"User", spec.User},
			{"Group", spec.Group},
			{"UMask", "0027"},
			{"RuntimeDirectory", spec.Service},
			{"RuntimeDirectoryMode", "0750"},
			{"RuntimeDirectoryPreserve", "restart"},
			{"LimitNOFILE", strconv.Itoa(spec.LimitNOFILE)},
			{"Delegate", "yes"},
			{"OOMPolicy", "continue"},
		}},
	}
}

// SocketUnit returns the text of <service>-<name>.socket, with defaults
// filled in.
func SocketUnit(spec UnitSpec, name string) (string, error) {
	spec = spec.WithDefaults()
	if err := spec.Validate(); err != nil {
		return "", err
	}
	for _, sock := range spec.Sockets {
		if sock.Name == name {
			return socketUnit(spec, sock)
		}
	}
	return "", fmt.Errorf("%w: no socket %q", ErrInvalidSpec, name)
}

func socketUnit(spec UnitSpec, sock SocketSpec) (string, error) {
	options, err := sock.listen(spec)
	if err != nil {
		return "", err
	}
	options = append(options,
		option{"FileDescriptorName", sock.Name},
		option{"Service", serviceUnitName(spec)},
		option{"Backlog", "65535"}) // the kernel caps it at net.core.somaxconn
	return unitText(spec, []section{
		{"Unit", []group{{"", []option{{"Description", escapePercent(spec.Description) + " (socket " + sock.Name + ")"}}}}},
		{"Socket", []group{
			{"", options},
			{"However often the service fails to start, the socket stays, and clients wait in its queue.",
				[]option{{"TriggerLimitIntervalSec", "0"}}},
		}},
		{"Install", []group{{"", []option{{"WantedBy", "sockets.target"}}}}},
	}), nil
}

func serviceUnitName(spec UnitSpec) string { return spec.Service + ".service" }

func socketUnitName(spec UnitSpec, sock SocketSpec) string {
	return spec.Service + "-" + sock.Name + ".socket"
}

func runtimeDirectory(spec UnitSpec) string { return filepath.Join("/run", spec.Service) }

// marker is the first line of every file that is ours to overwrite.
func marker(service string) string { return "# Written by hotdeploy for the service " + service + "." }

// isOurs reports whether text is a file that we wrote for service.
func isOurs(text, service string) bool {
	first, _, _ := strings.Cut(text, "\n")
	return first == marker(service)
}

func unitText(spec UnitSpec, sections []section) string {
	var out strings.Builder
	fmt.Fprintln(&out, marker(spec.Service))
	fmt.Fprintf(&out, "# `hotdeploy setup` overwrites it; changes of your own belong into a drop-in: systemctl edit %s\n",
		serviceUnitName(spec))
	for _, s := range sections {
		out.WriteByte('\n')
		writeSection(&out, s)
	}
	return out.String()
}

// writeSection has the library serialize the options, one line each, and puts
// the comments between them.
func writeSection(out *strings.Builder, s section) {
	var options []*unit.UnitOption
	comments := map[int]string{} // by the number of the line that follows
	for _, g := range s.groups {
		if g.comment != "" {
			comments[len(options)+1] = g.comment
		}
		for _, o := range g.options {
			options = append(options, unit.NewUnitOption(s.name, o.name, o.value))
		}
	}
	lines := bufio.NewScanner(unit.Serialize(options))
	for n := 0; lines.Scan(); n++ {
		if c := comments[n]; c != "" {
			fmt.Fprintf(out, "\n# %s\n", strings.ReplaceAll(c, "\n", "\n# "))
		}
		fmt.Fprintln(out, lines.Text())
	}
}

// escapePercent keeps systemd from expanding specifiers.
func escapePercent(text string) string { return strings.ReplaceAll(text, "%", "%%") }

func seconds(d time.Duration) string {
	if d%time.Second == 0 {
		return strconv.FormatInt(int64(d/time.Second), 10) + "s"
	}
	return strconv.FormatInt(d.Milliseconds(), 10) + "ms"
}
