package systemd

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/unit"
)

func chatSpec() UnitSpec {
	return UnitSpec{Service: "chat", DaemonPath: "/usr/local/bin/hotdeployd"}
}

// value returns what systemd would read for a name, the values of a name that
// is there several times with a space between them.
func value(t *testing.T, text, section, name string) string {
	t.Helper()
	options, err := unit.DeserializeOptions(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	var values []string
	for _, o := range options {
		if o.Section == section && o.Name == name {
			values = append(values, o.Value)
		}
	}
	return strings.Join(values, " ")
}

func TestServiceUnit(t *testing.T) {
	spec := chatSpec()
	spec.Description = "100% chat"
	spec.ConfigPath = "/etc/hotdeploy/50%.toml"
	spec.Root = "/srv/chat%n"
	spec.Watchdog = 1500 * time.Millisecond
	spec.ReadWritePaths = []string{"/var/lib/chat"}
	text, err := ServiceUnit(spec)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ section, name, want string }{
		{"Unit", "Description", "100%% chat"},
		{"Unit", "StartLimitIntervalSec", "0"},
		{"Unit", "After", "network-online.target"},
		{"Service", "Type", "notify"},
		{"Service", "ExecStart", "/usr/local/bin/hotdeployd run --config /etc/hotdeploy/50%%.toml"},
		{"Service", "User", "chat"},
		{"Service", "Group", "chat"},
		{"Service", "Restart", "always"},
		{"Service", "KillMode", "process"},
		{"Service", "TimeoutStopSec", "90s"},
		{"Service", "WatchdogSec", "1500ms"},
		{"Service", "Delegate", "yes"},
		{"Service", "OOMPolicy", "continue"},
		{"Service", "RuntimeDirectory", "chat"},
		{"Service", "LimitNOFILE", "524288"},
		{"Service", "ReadWritePaths", "/srv/chat%%n -/sys/fs/cgroup/system.slice/chat.service -/var/lib/chat"},
		{"Service", "CapabilityBoundingSet", ""},
		{"Service", "AmbientCapabilities", ""},
		{"Service", "MemoryDenyWriteExecute", ""},
		{"Install", "WantedBy", "multi-user.target"},
	} {
		if got := value(t, text, c.section, c.name); got != c.want {
			t.Errorf("[%s] %s=%s, want %s", c.section, c.name, got, c.want)
		}
	}
}

func TestServiceUnit_PortBelow1024(t *testing.T) {
	spec := chatSpec()
	spec.Capabilities = []string{capNetBindService, capNetBindService}
	text, err := ServiceUnit(spec)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"CapabilityBoundingSet", "AmbientCapabilities"} {
		if got := value(t, text, "Service", name); got != capNetBindService {
			t.Errorf("%s=%s", name, got)
		}
	}
}

func TestUnits_AreOursAndNobodyElses(t *testing.T) {
	spec := chatSpec()
	spec.Sockets = []SocketSpec{{Name: "web", Network: "tcp", Address: ":80"}}
	units, err := Units(spec)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, u := range units {
		names = append(names, u.Name)
		if !isOurs(u.Text, "chat") || isOurs(u.Text, "chat2") || isOurs(u.Text, "cha") {
			t.Errorf("%s: marker %.60q", u.Name, u.Text)
		}
	}
	if want := []string{"chat.service", "chat-web.socket"}; !slices.Equal(names, want) {
		t.Errorf("units %q, want %q", names, want)
	}
	if isOurs("[Unit]\n"+marker("chat")+"\n", "chat") {
		t.Error("a marker that is not the first line counts")
	}
	if got := value(t, units[0].Text, "Service", "Sockets"); got != "chat-web.socket" {
		t.Errorf("Sockets=%s", got)
	}
}

func TestSocketUnit(t *testing.T) {
	for _, c := range []struct {
		socket SocketSpec
		want   map[string]string
	}{
		{SocketSpec{"web", "tcp", ":8080", 0}, map[string]string{"ListenStream": "8080", "BindIPv6Only": "both"}},
		{SocketSpec{"web", "tcp", "[::1]:8080", 0}, map[string]string{"ListenStream": "[::1]:8080"}},
		{SocketSpec{"web", "tcp", "[fe80::1%eth0]:8080", 0}, map[string]string{"ListenStream": "[fe80::1%%eth0]:8080"}},
		{SocketSpec{"web", "tcp4", ":8080", 0}, map[string]string{"ListenStream": "0.0.0.0:8080"}},
		{SocketSpec{"web", "tcp6", ":8080", 0}, map[string]string{"ListenStream": "[::]:8080", "BindIPv6Only": "ipv6-only"}},
		{SocketSpec{"dns", "udp4", "127.0.0.1:53", 0}, map[string]string{"ListenDatagram": "127.0.0.1:53", "ListenStream": ""}},
		{SocketSpec{"api", "unix", "/srv/chat/api.sock", 0}, map[string]string{"ListenStream": "/srv/chat/api.sock", "SocketMode": "0660", "SocketUser": "chat"}},
		{SocketSpec{"api", "unix", "/srv/chat/api.sock", 0o600}, map[string]string{"SocketMode": "0600", "BindIPv6Only": ""}},
	} {
		spec := chatSpec()
		spec.Sockets = []SocketSpec{c.socket}
		text, err := SocketUnit(spec, c.socket.Name)
		if err != nil {
			t.Errorf("%+v: %v", c.socket, err)
			continue
		}
		c.want["FileDescriptorName"], c.want["Service"] = c.socket.Name, "chat.service"
		for name, want := range c.want {
			if got := value(t, text, "Socket", name); got != want {
				t.Errorf("%+v: %s=%s, want %s", c.socket, name, got, want)
			}
		}
	}
}

func TestValidate_Refuses(t *testing.T) {
	for name, spoil := range map[string]func(*UnitSpec){
		"no service":                  func(s *UnitSpec) { s.Service = "" },
		"service in capitals":         func(s *UnitSpec) { s.Service = "Chat" },
		"service that climbs":         func(s *UnitSpec) { s.Service = "../chat" },
		"service with a newline":      func(s *UnitSpec) { s.Service = "chat\n" },
		"service with an instance":    func(s *UnitSpec) { s.Service = "chat@1" },
		"service with a long name":    func(s *UnitSpec) { s.Service = strings.Repeat("a", 32) },
		"description of two lines":    func(s *UnitSpec) { s.Description = "a\nUser=root" },
		"description with an escape":  func(s *UnitSpec) { s.Description = "a\x1b[31m" },
		"description that continues":  func(s *UnitSpec) { s.Description = `a\` },
		"description that is a novel": func(s *UnitSpec) { s.Description = strings.Repeat("a", 201) },
		"no daemon":                   func(s *UnitSpec) { s.DaemonPath = "" },
		"daemon with an argument":     func(s *UnitSpec) { s.DaemonPath = "/bin/sh -c" },
		"daemon with a variable":      func(s *UnitSpec) { s.DaemonPath = "/bin/$X" },
		"daemon with a prefix":        func(s *UnitSpec) { s.DaemonPath = "+/bin/sh" },
		"relative daemon":             func(s *UnitSpec) { s.DaemonPath = "hotdeployd" },
		"configuration that climbs":   func(s *UnitSpec) { s.ConfigPath = "/etc/hotdeploy/../passwd" },
		"configuration with a quote":  func(s *UnitSpec) { s.ConfigPath = `/etc/"a` },
		"user root":                   func(s *UnitSpec) { s.User = "root" },
		"group root":                  func(s *UnitSpec) { s.Group = "root" },
		"user by number":              func(s *UnitSpec) { s.User = "0" },
		"user with a newline":         func(s *UnitSpec) { s.User = "chat\nroot" },
		"root of everything":          func(s *UnitSpec) { s.Root = "/" },
		"root in the system":          func(s *UnitSpec) { s.Root = "/etc" },
		"root deep in the system":     func(s *UnitSpec) { s.Root = "/usr/local/chat" },
		"root shared with others":     func(s *UnitSpec) { s.Root = "/srv" },
		"root that is top-level":      func(s *UnitSpec) { s.Root = "/data" },
		"root shared with everybody":  func(s *UnitSpec) { s.Root = "/var/lib" },
		"root that is a home":         func(s *UnitSpec) { s.Root = "/home/chat" },
		"root that is swept":          func(s *UnitSpec) { s.Root = "/var/tmp" },
		"root that is forgotten":      func(s *UnitSpec) { s.Root = "/tmp/chat" },
		"root with a slash too many":  func(s *UnitSpec) { s.Root = "/srv/chat/" },
		"root with a space":           func(s *UnitSpec) { s.Root = "/srv/chat /etc" },
		"writable everything":         func(s *UnitSpec) { s.ReadWritePaths = []string{"/"} },
		"writable system":             func(s *UnitSpec) { s.ReadWritePaths = []string{"/etc"} },
		"writable list in one":        func(s *UnitSpec) { s.ReadWritePaths = []string{"/srv/a /etc"} },
		"another capability":          func(s *UnitSpec) { s.Capabilities = []string{"CAP_SYS_ADMIN"} },
		"two capabilities in one":     func(s *UnitSpec) { s.Capabilities = []string{"CAP_NET_BIND_SERVICE CAP_SYS_ADMIN"} },
		"no files":                    func(s *UnitSpec) { s.LimitNOFILE = 10 },
		"negative files":              func(s *UnitSpec) { s.LimitNOFILE = -1 },
		"negative patience":           func(s *UnitSpec) { s.StopTimeout = -1 },
		"hasty watchdog":              func(s *UnitSpec) { s.Watchdog = time.Millisecond },
		"the same socket twice": func(s *UnitSpec) {
			s.Sockets = []SocketSpec{{"web", "tcp", ":80", 0}, {"web", "tcp", ":81", 0}}
		},
		"socket name with a colon":  withSocket("a:b", "tcp", ":80", 0),
		"socket without a name":     withSocket("", "tcp", ":80", 0),
		"socket of odd network":     withSocket("web", "sctp", ":80", 0),
		"socket without a port":     withSocket("web", "tcp", "127.0.0.1", 0),
		"socket on any port":        withSocket("web", "tcp", ":0", 0),
		"socket on a huge port":     withSocket("web", "tcp", ":65536", 0),
		"socket on a named port":    withSocket("web", "tcp", ":http", 0),
		"socket on a named host":    withSocket("web", "tcp", "localhost:80", 0),
		"socket of another family":  withSocket("web", "tcp4", "[::]:80", 0),
		"socket with a newline":     withSocket("web", "tcp", "[::1%a\nb]:80", 0),
		"socket with a mode":        withSocket("web", "tcp", ":80", 0o600),
		"relative unix socket":      withSocket("api", "unix", "api.sock", 0),
		"abstract unix socket":      withSocket("api", "unix", "@api", 0),
		"unix socket with odd mode": withSocket("api", "unix", "/srv/api.sock", 0o4755),
		"unix socket that vanishes": withSocket("api", "unix", "/run/chat/api.sock", 0),
		"unix socket of long name":  withSocket("api", "unix", "/srv/"+strings.Repeat("a", 107), 0),
	} {
		t.Run(name, func(t *testing.T) {
			spec := chatSpec().WithDefaults()
			spoil(&spec)
			if units, err := Units(spec); !errors.Is(err, ErrInvalidSpec) {
				t.Errorf("accepted: %v, %v", units, err)
			}
		})
	}
}

func withSocket(name, network, address string, mode fs.FileMode) func(*UnitSpec) {
	return func(s *UnitSpec) { s.Sockets = []SocketSpec{{name, network, address, mode}} }
}

func TestValidate_TellsEverythingAtOnce(t *testing.T) {
	err := UnitSpec{Service: "Chat", DaemonPath: "x"}.WithDefaults().Validate()
	for _, part := range []string{"service name", "daemon path"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v: nothing about the %s", err, part)
		}
	}
}

// Whatever is accepted, the unit has no option that the spec did not ask for.
func FuzzServiceUnit(f *testing.F) {
	f.Add("chat", "Chat for 100% of us", "/usr/bin/d", "/etc/x.toml", "chat", "/srv/chat", "/var/lib/x", "[::1%eth0]:80")
	f.Add("chat", "a\nUser=root", "/usr/bin/d\\", "/etc/$x", "chat\n", "/srv/chat\n[Service]", "/x y", "127.0.0.1:80\n")
	base := chatSpec()
	base.ReadWritePaths, base.Sockets = []string{"/var/lib/x"}, []SocketSpec{{"web", "tcp", ":80", 0}}
	want, err := Units(base)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, service, description, daemon, config, user, root, writable, address string) {
		units, err := Units(UnitSpec{
			Service: service, Description: description, DaemonPath: daemon, ConfigPath: config, User: user, Root: root,
			ReadWritePaths: []string{writable}, Sockets: []SocketSpec{{"web", "tcp", address, 0}},
		})
		if err != nil {
			return
		}
		for i, u := range units {
			if got, want := shape(t, u.Text), shape(t, want[i].Text); got != want {
				t.Errorf("%s has the options\n%s\nwant\n%s", u.Name, got, want)
			}
		}
	})
}

// shape is the list of all options of a unit, without their values.
func shape(t *testing.T, text string) string {
	options, err := unit.DeserializeOptions(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	var names strings.Builder
	for _, o := range options {
		names.WriteString(o.Section + "." + o.Name + "\n")
	}
	return names.String()
}
