//go:build linux

package systemd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/testdata/lab"
)

// maxExposure is below the 3.0 that we promise: a rise shows early.
const maxExposure = 2.8

const daemonPath = "/opt/hotdeploy/hotdeployd"

// host is a machine on which this test binary is installed as the daemon.
type host struct {
	*lab.Machine
	t   *testing.T
	lab *lab.Lab
}

func newHost(t *testing.T) host {
	t.Helper()
	l := lab.New(t, 1)
	h := host{l.Machine(1), t, l}
	self, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := h.WriteFile(t.Context(), daemonPath, self, 0o755); err != nil {
		t.Fatal(err)
	}
	return h
}

// run is for commands that must succeed; their output without the last newline.
func (h host) run(cmd string) string {
	h.t.Helper()
	out, err := h.Enter(h.t.Context(), cmd)
	if err != nil {
		h.t.Fatal(err)
	}
	return strings.TrimSuffix(out, "\n")
}

type setupAnswer struct {
	Report Report
	Error  string
	Kind   string // the sentinel in the error
}

var kinds = map[string]error{"invalid": ErrInvalidSpec, "foreign": ErrForeign, "busy": ErrSetupBusy}

// setup runs Setup on the machine, as root.
func (h host) setup(spec SetupSpec) setupAnswer {
	h.t.Helper()
	in, err := json.Marshal(spec)
	if err != nil {
		h.t.Fatal(err)
	}
	cmd, err := h.EnterCommand(h.t.Context(), "env", roleVariable+"=setup", "GORACE=atexit_sleep_ms=0", daemonPath)
	if err != nil {
		h.t.Fatal(err)
	}
	cmd.Stdin = bytes.NewReader(in)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var answer setupAnswer
	if jsonErr := json.Unmarshal(out, &answer); err != nil || jsonErr != nil {
		h.t.Fatalf("setup: %v, %v\n%s%s", err, jsonErr, out, stderr.String())
	}
	return answer
}

func (h host) mustSetup(spec SetupSpec) Report {
	h.t.Helper()
	answer := h.setup(spec)
	if answer.Error != "" {
		h.t.Fatalf("setup: %s\nafter %q\n%s", answer.Error, answer.Report.Changes, h.run("journalctl -n 50 --no-pager"))
	}
	return answer.Report
}

func init() {
	roles["setup"] = func() error {
		var answer setupAnswer
		spec, err := DecodeSetupSpec(os.Stdin)
		if err == nil {
			answer.Report, err = Setup(context.Background(), spec, nil)
		}
		if err != nil {
			answer.Error = err.Error()
		}
		for kind, sentinel := range kinds {
			if errors.Is(err, sentinel) {
				answer.Kind = kind
			}
		}
		return json.NewEncoder(os.Stdout).Encode(answer)
	}
	roles["idle"] = func() error { return beService("idle", nil) }
}

// beService is a daemon's life as far as systemd sees it.
func beService(status string, work func(context.Context) error) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var n Notifier
	if work != nil {
		if err := work(ctx); err != nil {
			return err
		}
	}
	interval, err := WatchdogInterval()
	if err != nil {
		return err
	}
	if interval == 0 {
		return errors.New("no watchdog")
	}
	if err := n.Ready(status); err != nil {
		return err
	}
	for tick := time.NewTicker(interval); ; {
		select {
		case <-tick.C:
			n.Watchdog()
		case <-ctx.Done():
			return n.Stopping("")
		}
	}
}

func idle(service string) SetupSpec {
	return SetupSpec{
		UnitSpec:   UnitSpec{Service: service, DaemonPath: daemonPath, Watchdog: time.Minute},
		ConfigText: "# role: idle\n",
		Enable:     true,
		Start:      true,
	}
}

func TestSetup_BareMachine_ThenNothingToChange(t *testing.T) {
	h := newHost(t)
	spec := idle("chat")
	spec.DeployGroupMembers, spec.ReadJournal = []string{"deploy"}, true
	first := h.mustSetup(spec)
	want := []string{
		"created user chat",
		"added deploy to the group chat (from its next login on)",
		"added deploy to the group systemd-journal: may read the whole journal of this host (from its next login on)",
		"created /srv/chat", "created /srv/chat/releases", "created /srv/chat/incoming", "created /srv/chat/shared",
		"created /srv/chat/state", "created /srv/chat/tmp", "created /srv/chat/env",
		"created /etc/hotdeploy", "created /etc/hotdeploy/chat.toml", "created /etc/systemd/system/chat.service",
		"enabled chat.service", "started chat.service",
	}
	if !slices.Equal(first.Changes, want) || !first.Running || first.RestartNeeded != nil {
		t.Errorf("report %+v\nwant %q", first, want)
	}

	stat := h.run("stat -c '%n %A %U:%G' /srv/chat /srv/chat/* /etc/hotdeploy /etc/hotdeploy/chat.toml /etc/systemd/system/chat.service /run/chat")
	for _, line := range []string{
		"/srv/chat drwxr-x--- chat:chat", "/srv/chat/releases drwxr-x--- chat:chat", "/srv/chat/incoming drwxrws--- chat:chat",
		"/srv/chat/shared drwxr-x--- chat:chat", "/srv/chat/state drwx------ chat:chat", "/srv/chat/tmp drwx------ chat:chat", "/srv/chat/env -rw------- chat:chat",
		"/etc/hotdeploy drwxr-xr-x root:root", "/etc/hotdeploy/chat.toml -rw-r--r-- root:root",
		"/etc/systemd/system/chat.service -rw-r--r-- root:root", "/run/chat drwxr-x--- chat:chat",
	} {
		if !slices.Contains(strings.Split(stat, "\n"), line) {
			t.Errorf("no %q in\n%s", line, stat)
		}
	}
	if got := h.run("getent passwd chat | cut -d: -f5-7"); got != "hotdeploy service chat:/srv/chat:/usr/sbin/nologin" {
		t.Errorf("user chat: %s", got)
	}
	if got := h.run("id -Gn deploy"); !slices.Contains(strings.Fields(got), "chat") {
		t.Errorf("groups of deploy: %s", got)
	}
	if got := h.run("systemctl show -P StatusText -P ActiveState chat"); got != "active\nidle" && got != "idle\nactive" {
		t.Errorf("service: %s", got)
	}
	if out, err := h.Enter(t.Context(), "runuser -u deploy -- touch /srv/chat/incoming/upload && stat -c %G /srv/chat/incoming/upload"); err != nil || out != "chat\n" {
		t.Errorf("an upload by deploy: %q, %v", out, err)
	}
	h.run("rm /srv/chat/incoming/upload")
	if out, err := h.Enter(t.Context(), "runuser -u nobody -- ls /srv/chat"); err == nil {
		t.Errorf("nobody sees %q", out)
	}

	h.run("echo SECRET=1 >/srv/chat/env")
	second := h.mustSetup(spec)
	if !slices.Equal(second.Lines(), []string{"nothing to change"}) || !second.Running {
		t.Errorf("second run: %+v", second)
	}
	if got := h.run("cat /srv/chat/env"); got != "SECRET=1" {
		t.Errorf("the env file now holds %q", got)
	}
	if left := h.run("find /etc /srv -name '.*.*' -newer /opt/hotdeploy/hotdeployd -type f | grep -e hotdeploy -e chat || true"); left != "" {
		t.Errorf("temporary files left: %s", left)
	}

	if err := h.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := h.run("systemctl is-active chat"); got != "active" {
		t.Errorf("after a reboot: %s", got)
	}
	if third := h.mustSetup(spec); !slices.Equal(third.Lines(), []string{"nothing to change"}) {
		t.Errorf("after a reboot: %+v", third)
	}
}

func TestSetup_NeverRestartsButSaysThatItShould(t *testing.T) {
	h := newHost(t)
	spec := idle("chat")
	h.mustSetup(spec)
	pid := h.run("systemctl show -P MainPID chat")

	spec.LimitNOFILE = 10000
	report := h.mustSetup(spec)
	if !slices.Equal(report.Changes, []string{"updated /etc/systemd/system/chat.service"}) {
		t.Errorf("changed unit: %+v", report)
	}
	unitChanged := "/etc/systemd/system/chat.service changed since it started: user, capabilities, limits and sandbox are still those before, the rest of it is in force"
	if !slices.Equal(report.RestartNeeded, []string{unitChanged}) {
		t.Errorf("changed unit: %+v", report)
	}
	if got := h.run("systemctl show -P LimitNOFILE chat"); got != "10000" {
		t.Errorf("systemd has read LimitNOFILE=%s", got)
	}

	h.run("cp -p " + daemonPath + " /opt/new && echo >>/opt/new && mv /opt/new " + daemonPath)
	report = h.mustSetup(spec)
	if report.Changes != nil || !slices.Equal(report.RestartNeeded, []string{daemonPath + " was replaced since it started", unitChanged}) {
		t.Errorf("another daemon: %+v", report)
	}

	spec.Sockets = []SocketSpec{{Name: "web", Network: "tcp", Address: ":8081"}}
	report = h.mustSetup(spec)
	if !slices.Contains(report.RestartNeeded, "chat-web.socket cannot be bound while the service runs without it") {
		t.Errorf("a socket comes later: %+v", report)
	}
	if got := h.run("systemctl show -P MainPID chat"); got != pid {
		t.Errorf("main process %s, it was %s: restarted", got, pid)
	}

	h.run("systemctl stop chat && systemctl start chat")
	report = h.mustSetup(spec)
	if report.RestartNeeded != nil || !report.Running || !slices.Equal(report.Lines(), []string{"nothing to change"}) {
		t.Errorf("after a restart: %+v", report)
	}

	spec.Sockets = nil
	report = h.mustSetup(spec)
	if len(report.Notes) != 1 || !strings.Contains(report.Notes[0], "systemctl disable --now chat-web.socket") {
		t.Errorf("a socket unit is left: %+v", report)
	}
}

func TestSetup_RepairsWhatWasSpoilt(t *testing.T) {
	h := newHost(t)
	spec := idle("chat")
	h.mustSetup(spec)
	h.run(`chmod 777 /srv/chat/shared; chown root:root /srv/chat/env; rmdir /srv/chat/incoming
		chmod 600 /etc/hotdeploy/chat.toml; systemctl disable -q chat; echo 'Nice=5' >>/etc/systemd/system/chat.service`)
	report := h.mustSetup(spec)
	want := []string{
		"created /srv/chat/incoming",
		"changed the mode of /srv/chat/shared from -rwxrwxrwx to -rwxr-x---",
		"changed the owner of /srv/chat/env from 0:0 to UID:GID",
		"changed the mode of /etc/hotdeploy/chat.toml",
		"updated /etc/systemd/system/chat.service",
		"enabled chat.service",
	}
	want[2] = strings.NewReplacer("UID", h.run("id -u chat"), "GID", h.run("id -g chat")).Replace(want[2])
	if !slices.Equal(report.Changes, want) {
		t.Errorf("report %q\nwant %q", report.Changes, want)
	}
	if again := h.mustSetup(spec); again.Changes != nil {
		t.Errorf("second run: %+v", again)
	}
}

func TestSetup_RefusesWhatIsNotOurs_AndChangesNothing(t *testing.T) {
	h := newHost(t)
	h.run(`useradd -r boss && groupadd -r power && useradd -m -s /bin/bash carla && mkdir -p /srv/used /srv/carla && echo x >/srv/used/x
		chown carla /srv/carla && ln -s /etc /srv/link && mkdir -m 777 /srv/open && ln -s /dev/null /etc/systemd/system/masked.service
		mkdir -p /usr/lib/systemd/system && ln -s ssh.service /etc/systemd/system/alias.service
		printf '[Service]\nExecStart=/bin/true\n' >/etc/systemd/system/theirs.service
		printf '[Socket]\nListenStream=9999\n' >/etc/systemd/system/chat-web.socket
		cp /bin/true /opt/writable && chmod 777 /opt/writable && systemctl daemon-reload`)
	before := h.fingerprint()
	for name, c := range map[string]struct {
		kind  string
		spoil func(*SetupSpec)
	}{
		"a unit of the system":         {"foreign", func(s *SetupSpec) { s.Service = "ssh" }},
		"a unit of the administrator":  {"foreign", func(s *SetupSpec) { s.Service = "theirs" }},
		"a masked unit":                {"foreign", func(s *SetupSpec) { s.Service = "masked" }},
		"an alias":                     {"foreign", func(s *SetupSpec) { s.Service = "alias" }},
		"somebody's socket unit":       {"foreign", func(s *SetupSpec) { s.Sockets = []SocketSpec{{"web", "tcp", ":9999", 0}} }},
		"a system user":                {"foreign", func(s *SetupSpec) { s.Service = "boss" }},
		"a login user":                 {"foreign", func(s *SetupSpec) { s.Service = "carla" }},
		"a group":                      {"foreign", func(s *SetupSpec) { s.Service = "power" }},
		"a group of power":             {"foreign", func(s *SetupSpec) { s.Service = "shadow" }},
		"a user with rights of root's": {"invalid", func(s *SetupSpec) { s.User = "root" }},
		"a folder in use":              {"foreign", func(s *SetupSpec) { s.Root = "/srv/used" }},
		"a folder of somebody's":       {"foreign", func(s *SetupSpec) { s.Root = "/srv/carla" }},
		"a link for a folder":          {"foreign", func(s *SetupSpec) { s.Root = "/srv/link" }},
		"a folder behind a link":       {"", func(s *SetupSpec) { s.Root = "/srv/link/chat" }},
		"a folder where all may write": {"", func(s *SetupSpec) { s.Root = "/srv/open/chat" }},
		"a member that is not there":   {"invalid", func(s *SetupSpec) { s.DeployGroupMembers = []string{"deploy", "ghost"} }},
		"a daemon that is not there":   {"", func(s *SetupSpec) { s.DaemonPath = "/opt/ghost" }},
		"a daemon that all may change": {"", func(s *SetupSpec) { s.DaemonPath = "/opt/writable" }},
		"a configuration anywhere":     {"invalid", func(s *SetupSpec) { s.ConfigPath = "/etc/passwd" }},
		"a name that climbs":           {"invalid", func(s *SetupSpec) { s.Service = "../../etc/chat" }},
	} {
		t.Run(name, func(t *testing.T) {
			spec := idle("chat")
			c.spoil(&spec)
			answer := h.setup(spec)
			if answer.Error == "" || answer.Kind != c.kind || answer.Report.Changes != nil {
				t.Errorf("%+v; want a refusal of kind %q", answer, c.kind)
			}
			t.Log(answer.Error)
		})
	}
	if after := h.fingerprint(); after != before {
		t.Errorf("something changed:\n%s\nbefore:\n%s", after, before)
	}

	spec := idle("boss")
	spec.User = "boss" // explicitly named
	if report := h.mustSetup(spec); !report.Running {
		t.Errorf("with a named user: %+v", report)
	}
}

// fingerprint is every file that Setup could touch, with its owner, mode and
// contents.
func (h host) fingerprint() string {
	h.t.Helper()
	return h.run(`find /etc/passwd /etc/group /etc/hotdeploy /etc/systemd /srv /run/chat -printf '%p %M %u:%g %T@\n' 2>/dev/null | sort || true
		cat /etc/passwd /etc/group | md5sum`)
}

func TestSetup_WhatTheServiceMightPlantIsNotFollowed(t *testing.T) {
	h := newHost(t)
	spec := idle("chat")
	h.mustSetup(spec)
	for name, plant := range map[string]string{
		"a link for a folder":    "rmdir /srv/chat/shared; ln -sfn /etc /srv/chat/shared",
		"a link for the env":     "rm -f /srv/chat/env; ln -sfn /etc/shadow /srv/chat/env",
		"a hard link as the env": "rm -f /srv/chat/env; touch /srv/precious; ln /srv/precious /srv/chat/env",
		"a pipe as the env":      "rm -f /srv/chat/env; mkfifo /srv/chat/env",
	} {
		t.Run(name, func(t *testing.T) {
			h.run(plant)
			answer := h.setup(spec)
			if answer.Kind != "foreign" {
				t.Errorf("%+v", answer)
			}
			h.run("rm -f /srv/chat/shared /srv/chat/env 2>/dev/null || true; mkdir -p /srv/chat/shared")
		})
	}
	if got := h.run("stat -c %U:%G:%a /etc /etc/shadow /srv/precious"); got != "root:root:755\nroot:shadow:640\nroot:root:644" {
		t.Errorf("owners and modes now: %s", got)
	}
}

func TestSetup_OneAtATime(t *testing.T) {
	h := newHost(t)
	holder, err := h.EnterCommand(t.Context(), "flock", "--shared", setupLock, "sh", "-c", "echo held; cat")
	if err != nil {
		t.Fatal(err)
	}
	hold, _ := holder.StdinPipe()
	out, _ := holder.StdoutPipe()
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("held\n"))); err != nil {
		t.Fatal(err)
	}
	if answer := h.setup(idle("chat")); answer.Kind != "busy" {
		t.Errorf("%+v", answer)
	}
	hold.Close()
	holder.Wait()
	h.mustSetup(idle("chat"))
}

func TestSetup_ServiceThatDoesNotStart_SaysWhatWasChangedAndHowToSeeWhy(t *testing.T) {
	h := newHost(t)
	spec := idle("chat")
	spec.ConfigText = "# role: none such\n"
	spec.StopTimeout = time.Second
	h.run("mkdir -p /etc/systemd/system/chat.service.d && printf '[Service]\nRestart=no\n' >/etc/systemd/system/chat.service.d/once.conf")
	answer := h.setup(spec)
	if !strings.Contains(answer.Error, "journalctl -u chat.service") || !slices.Contains(answer.Report.Changes, "enabled chat.service") {
		t.Errorf("%+v", answer)
	}
}

func TestSockets_ComeByName(t *testing.T) {
	h := newHost(t)
	spec := idle("chat")
	spec.ConfigText = "# role: greeter\n"
	spec.Sockets = []SocketSpec{
		{Name: "web", Network: "tcp", Address: ":81"}, // below 1024, without a capability
		{Name: "admin", Network: "tcp4", Address: "127.0.0.1:8082"},
		{Name: "api", Network: "unix", Address: "/run/chat-api.sock", Mode: 0o666},
	}
	report := h.mustSetup(spec)
	if !slices.Contains(report.Changes, "started chat-api.socket") {
		t.Errorf("report %+v", report)
	}
	for name, where := range map[string]string{
		"web":   "TCP:127.0.0.1:81",
		"admin": "TCP:127.0.0.1:8082",
		"api":   "UNIX:/run/chat-api.sock",
	} {
		if got := h.run("env " + roleVariable + "=call WHERE=" + where + " " + daemonPath); got != name {
			t.Errorf("%s answers as %q, want %q", where, got, name)
		}
	}
	if got := h.run("stat -c %a:%U /run/chat-api.sock"); got != "666:chat" {
		t.Errorf("unix socket %s", got)
	}
	if second := h.mustSetup(spec); !slices.Equal(second.Lines(), []string{"nothing to change"}) {
		t.Errorf("second run: %+v", second)
	}
}

var exposure = regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`)

func (h host) exposure(unit string) float64 {
	h.t.Helper()
	text := h.run("systemd-analyze --no-pager security " + unit)
	m := exposure.FindStringSubmatch(text)
	if m == nil {
		h.t.Fatalf("no figure in\n%s", text)
	}
	score, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Logf("systemd-analyze security %s: %v", unit, score)
	return score
}

func TestSandbox_TightAndStillRoomy(t *testing.T) {
	h := newHost(t)
	for _, c := range []struct {
		service      string
		capabilities []string
	}{{"plain", nil}, {"lowport", []string{capNetBindService}}} {
		t.Run(c.service, func(t *testing.T) {
			h := host{h.Machine, t, h.lab}
			spec := idle(c.service)
			spec.ConfigText, spec.Capabilities = "# role: probe\n", c.capabilities
			h.run("mkdir -m 777 /var/lib/extra-" + c.service)
			spec.ReadWritePaths = []string{"/var/lib/extra-" + c.service, "/var/lib/absent"}
			h.mustSetup(spec)
			if score := h.exposure(c.service + ".service"); score > maxExposure {
				t.Errorf("exposure %v, want at most %v", score, maxExposure)
			}
			h.checkProbe(c.service, c.capabilities != nil)
			h.checkJournal(c.service)
		})
	}
}

func (h host) checkProbe(service string, lowPort bool) {
	h.t.Helper()
	text, err := h.ReadFile(h.t.Context(), "/srv/"+service+"/state/probe.json")
	if err != nil {
		h.t.Fatal(err)
	}
	var results []probeResult
	if err := json.Unmarshal(text, &results); err != nil || len(results) != len(probes) {
		h.t.Fatalf("%d results of %d probes, %v:\n%s", len(results), len(probes), err, text)
	}
	for _, r := range results {
		want := r.Want
		if r.Name == "bind port 82" && lowPort {
			want = "works"
		}
		if got := r.verdict(); got != want {
			h.t.Errorf("%s: %s (%s), want: %s", r.Name, got, r.Error, want)
		}
	}
}

// checkJournal: what a child of the daemon printed is found by identifier, and
// by unit, with the pid of the child.
func (h host) checkJournal(service string) {
	h.t.Helper()
	h.run("journalctl --sync")
	var line struct {
		Identifier string `json:"SYSLOG_IDENTIFIER"`
		Unit       string `json:"_SYSTEMD_UNIT"`
		Comm       string `json:"_COMM"`
		Priority   string `json:"PRIORITY"`
	}
	text := h.run("journalctl -o json --no-pager -u " + service + " -t " + service + "/1.2.3 MESSAGE=hello")
	if err := json.Unmarshal([]byte(text), &line); err != nil {
		h.t.Fatalf("%v in %q", err, text)
	}
	if line.Identifier != service+"/1.2.3" || line.Unit != service+".service" || line.Priority != "6" {
		h.t.Errorf("journal line %+v", line)
	}
	if got := h.run("journalctl -o cat --no-pager -p err -u " + service + " MESSAGE=oops"); got != "oops" {
		h.t.Errorf("a line with a level of its own: %q", got)
	}
}
