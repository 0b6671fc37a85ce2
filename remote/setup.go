package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/systemd"
)

// Why a host cannot be set up. Compare with errors.Is.
var (
	ErrNoRoot     = &api.Error{Code: "no-root"}     // neither root nor sudo without a password
	ErrNoDaemon   = &api.Error{Code: "no-daemon"}   // no daemon binary for the host on this machine
	ErrNoPlatform = &api.Error{Code: "no-platform"} // none exists

	ErrNotReplaced = &api.Error{Code: "not-replaced"} // the running daemon could not make way for the one that was sent
)

const (
	maxProbe      = 16 << 10
	maxSetupLines = 64 << 10
	restartNeeded = "restart needed: " // how a line of hotdeployd setup says so
	notReplaced   = "not replaced: "   // likewise
	remark        = "note: "           // likewise
	nothingToDo   = "nothing to change"
)

// SetupOptions is what to make true on a host.
type SetupOptions struct {
	Name   string            // the host as the operator calls it, for hints
	Spec   systemd.SetupSpec // DaemonPath and the members of the group are filled in
	Daemon string            // path of the daemon's binary here; empty: it is looked for
	Say    func(line string) // told of each change as it is made; nil: nobody is
}

// SetupResult is what was changed and what remains to be done.
type SetupResult struct {
	Platform string   `json:"platform"` // of the host
	Changes  []string `json:"changes"`
	Notes    []string `json:"notes,omitempty"`
	Restart  []string `json:"restart_needed,omitempty"` // what is not in force before the service is restarted

	NotReplaced string `json:"not_replaced,omitempty"` // why the running daemon is still the one before
}

// Setup installs the daemon on a host if another or none is there, and then lets it make user, folders, configuration and units
// be as the spec says, and the running daemon make way for the installed one. It never restarts a service. It may be repeated, also after a failure in the middle.
func Setup(ctx context.Context, s *Session, o SetupOptions) (SetupResult, error) {
	u := &setup{s: s, o: o}
	h, err := u.probe(ctx)
	if err != nil {
		return u.res, err
	}
	u.res.Platform = h.os + "/" + h.arch
	if err := u.installDaemon(ctx, h); err != nil {
		return u.res, err
	}
	if err := u.run(ctx, h); err != nil {
		return u.res, err
	}
	if len(u.res.Changes) == 0 {
		u.say(nothingToDo)
	}
	return u.res, nil
}

type setup struct {
	s   *Session
	o   SetupOptions
	res SetupResult
}

func (u *setup) say(line string) {
	if u.o.Say != nil {
		u.o.Say(line)
	}
}

func (u *setup) changed(line string) {
	u.res.Changes = append(u.res.Changes, line)
	u.say(line)
}

// machine is what set-up must know of the host before it does anything.
type machine struct {
	os, arch string // in Go's words
	user     string
	root     bool
	sudo     bool   // without a password
	digest   string // of the daemon that is there
}

// asRoot is argv, run as root.
func (m machine) asRoot(argv ...string) []string {
	if m.root {
		return argv
	}
	return append([]string{"sudo", "-n", "--"}, argv...)
}

const probeScript = `
echo "uname=$(uname -sm)"
echo "uid=$(id -u)"
echo "user=$(id -un)"
[ "$(id -u)" = 0 ] || { sudo -n -- true 2>/dev/null && echo sudo=yes; }
[ -e "$1" ] && echo "digest=$(sha256sum "$1" 2>/dev/null | cut -d' ' -f1)"
:`

func (u *setup) probe(ctx context.Context) (m machine, err error) {
	out, err := u.s.Output(ctx, maxProbe, "sh", "-c", probeScript, "sh", daemonPath)
	if err != nil {
		return m, fmt.Errorf("look at the host: %w", err)
	}
	var uname string
	for key, value := range facts(out) {
		switch key {
		case "uname":
			uname = value
		case "uid":
			m.root = value == "0"
		case "user":
			m.user = value
		case "sudo":
			m.sudo = true
		case "digest":
			m.digest = value
		}
	}
	if m.os, m.arch, err = platform(uname); err != nil {
		return m, err
	}
	if !m.root && !m.sudo {
		return m, refusal(ErrNoRoot, fmt.Sprintf("%s is not root there and may not use sudo without a password", m.user),
			fmt.Sprintf("set it up as root:  hotdeploy setup root@%s --deploy-user %s", u.s.host.Alias, m.user))
	}
	return m, nil
}

// platform translates uname -sm.
func platform(uname string) (os, arch string, err error) {
	kernel, machine, _ := strings.Cut(uname, " ")
	arch = map[string]string{"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}[machine]
	if kernel != "Linux" || arch == "" {
		return "", "", refusal(ErrNoPlatform, fmt.Sprintf("the host is %q; the daemon is built for Linux on x86_64 and aarch64", clip(uname, 80)), "")
	}
	return "linux", arch, nil
}

// run lets the daemon's own set-up do the rest, as root on the host.
func (u *setup) run(ctx context.Context, m machine) error {
	spec := u.o.Spec
	spec.DaemonPath = daemonPath
	if len(spec.DeployGroupMembers) == 0 && !m.root { // or the next push would be refused
		spec.DeployGroupMembers, spec.ReadJournal = []string{m.user}, true // with sudo he may do more than that already
	}
	input, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("encode the set-up: %w", err)
	}
	lines := &lineWriter{limit: maxSetupLines, line: u.reported}
	errs := &limited{limit: maxStderr, tail: true}
	err = u.s.Run(ctx, m.asRoot(daemonPath, "setup"), bytes.NewReader(input), lines, errs)
	lines.flush()
	if u.res.NotReplaced != "" {
		return u.explainNotReplaced()
	}
	if exit := new(ExitError); errors.As(err, &exit) {
		said := strings.TrimPrefix(oneLine(printable(errs.String())), "hotdeployd: error: ")
		return fmt.Errorf("hotdeployd setup on the host (exit status %d): %s", exit.Status, said)
	}
	return err
}

// explainNotReplaced: the host has put the old binary back, unless that can never make way.
func (u *setup) explainNotReplaced() error {
	f := refusal(ErrNotReplaced, "the running daemon was not replaced: "+u.res.NotReplaced, "")
	f.State = "the daemon that ran still runs, and so does the app; " + daemonPath + " is as it was"
	f.Hint = fmt.Sprintf("when that is mended, repeat  hotdeploy setup %s ; see also  ssh %s journalctl -u %s", u.o.Name, u.o.Name, u.o.Spec.Service)
	if len(u.res.Restart) > 0 {
		f.State = "the daemon that ran still runs, and so does the app; the new one is installed, and takes over when the old one ends"
		f.Hint = fmt.Sprintf("when connections may close:  hotdeploy restart --daemon %s", u.o.Name)
	}
	return f
}

// reported takes one line of what hotdeployd setup says.
func (u *setup) reported(line string) {
	line = oneLine(printable(line))
	switch why, ok := strings.CutPrefix(line, restartNeeded); {
	case line == "" || line == nothingToDo:
	case ok:
		u.res.Restart = append(u.res.Restart, why)
	case strings.HasPrefix(line, notReplaced):
		u.res.NotReplaced = strings.TrimPrefix(line, notReplaced)
	case strings.HasPrefix(line, remark):
		u.res.Notes = append(u.res.Notes, strings.TrimPrefix(line, remark))
		u.say(line)
	default:
		u.changed(line)
	}
}

// RestartDaemon restarts a service's daemon, which ends the app and closes its connections.
func RestartDaemon(ctx context.Context, s *Session, service string) error {
	const script = `if [ "$(id -u)" = 0 ]; then exec systemctl restart "$1.service"; else exec sudo -n -- systemctl restart "$1.service"; fi`
	return s.Run(ctx, []string{"sh", "-c", script, "sh", service}, nil, nil, nil)
}

// lineWriter calls line for each line that is written to it. What is beyond limit is thrown away.
type lineWriter struct {
	limit int
	line  func(string)
	rest  []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	n := len(p)
	p = p[:min(len(p), w.limit)]
	w.limit -= len(p)
	for w.rest = append(w.rest, p...); ; {
		i := bytes.IndexByte(w.rest, '\n')
		if i < 0 {
			return n, nil
		}
		w.line(string(w.rest[:i]))
		w.rest = w.rest[i+1:]
	}
}

func (w *lineWriter) flush() {
	if len(w.rest) > 0 {
		w.line(string(w.rest))
		w.rest = nil
	}
}

var _ io.Writer = (*lineWriter)(nil)
