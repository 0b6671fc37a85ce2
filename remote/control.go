package remote

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"strings"
	"sync/atomic"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/version"
)

// DaemonPath is where set-up puts the daemon on the host.
const DaemonPath = "/usr/local/bin/hotdeployd"

// daemonPath is DaemonPath, but for tests.
var daemonPath = DaemonPath

// Why there is no daemon to talk to. Compare with errors.Is; Explain gives the command to fix it.
var (
	ErrDaemonMissing = &api.Error{Code: "daemon-missing"} // this service was never set up on the host
	ErrDaemonStopped = &api.Error{Code: "daemon-stopped"} // set up, and not running
	ErrDaemonRefuses = &api.Error{Code: "daemon-refuses"} // running, and we may not talk to it
	ErrDaemonAPI     = &api.Error{Code: "daemon-api"}     // it speaks another major version of the API
)

// ControlSocket is where the daemon of a service listens unless the target says otherwise.
func ControlSocket(service string) string { return "/run/" + service + "/control.sock" }

// Control returns a client of a service's daemon, reached through s; an empty socket is the usual one. It goes straight to the
// socket, or through hotdeployd dial where the server forbids that. Nothing is sent before the first request. The
// client does not close s.
func Control(s *Session, service, socket string) *api.Client {
	if socket == "" {
		socket = ControlSocket(service)
	}
	c := &control{s: s, service: service, socket: socket}
	return api.NewClient(c.dial)
}

type control struct {
	s               *Session
	service, socket string
	forbidden       atomic.Bool // the server does not forward: known after the first try
}

func (c *control) dial(ctx context.Context) (net.Conn, error) {
	if !c.forbidden.Load() {
		conn, err := c.s.DialUnix(ctx, c.socket)
		e := new(ErrSocket)
		if err == nil || !errors.As(err, &e) {
			return conn, err
		}
		if e.Reason != SocketForbidden {
			return nil, c.explain(ctx, e)
		}
	}
	conn, err := c.s.DialCommand(ctx, []string{daemonPath, "dial", "--service", c.service, "--socket", c.socket})
	if err == nil && !c.forbidden.Swap(true) {
		// The command's end shows in a Read only. Ask once why it might fail, so that the first error is a good one.
		if err := c.check(ctx); err != nil {
			conn.Close()
			c.forbidden.Store(false)
			return nil, err
		}
	}
	return conn, err
}

// hostState is what there is of a service on the host.
type hostState struct {
	daemon, configured bool
	unit               string // systemctl's word
	populated          bool   // its cgroup has processes, whatever systemctl says
	socket             string // absent, denied, there
	user, group        string // ours; the socket's
	services           []string
}

const stateScript = `
[ -x "$3" ] && echo daemon=yes
[ -e "/etc/hotdeploy/$1.toml" ] && echo configured=yes
echo "unit=$(systemctl is-active "$1.service" 2>/dev/null)"
grep -qx 'populated 1' "/sys/fs/cgroup/system.slice/$1.service/cgroup.events" 2>/dev/null && echo populated=yes
if [ ! -S "$2" ]; then echo socket=absent; elif [ ! -w "$2" ]; then echo socket=denied; else echo socket=there; fi
echo "user=$(id -un)"
echo "group=$(systemctl show -p Group --value "$1.service" 2>/dev/null)"
for f in /etc/hotdeploy/*.toml; do [ -e "$f" ] && f=${f##*/} && echo "service=${f%.toml}"; done
:`

func (c *control) ask(ctx context.Context) (st hostState, err error) {
	out, err := c.s.Output(ctx, 64<<10, "sh", "-c", stateScript, "sh", c.service, c.socket, daemonPath)
	if err != nil {
		return st, err
	}
	for key, value := range facts(out) {
		switch key {
		case "daemon":
			st.daemon = true
		case "configured":
			st.configured = true
		case "unit":
			st.unit = value
		case "populated":
			st.populated = true
		case "socket":
			st.socket = value
		case "user":
			st.user = value
		case "group":
			st.group = value
		case "service":
			st.services = append(st.services, value)
		}
	}
	return st, nil
}

// facts yields what a script on the host found out: key=value, one a line.
func facts(out []byte) iter.Seq2[string, string] {
	return func(yield func(key, value string) bool) {
		for line := range strings.Lines(string(out)) {
			key, value, ok := strings.Cut(oneLine(printable(line)), "=")
			if ok && !yield(key, value) {
				return
			}
		}
	}
}

// check is nil if the daemon can be talked to, as far as one can see from outside.
func (c *control) check(ctx context.Context) error {
	st, err := c.ask(ctx)
	if err != nil {
		return err
	}
	if st.socket == "there" && st.daemon {
		return nil
	}
	return c.verdict(st, errors.New("connect to "+c.socket))
}

func (c *control) explain(ctx context.Context, cause error) error {
	st, err := c.ask(ctx)
	if err != nil { // no shell for us there, or the line is gone: then the first error is all we know
		return cause
	}
	return c.verdict(st, cause)
}

func (c *control) verdict(st hostState, cause error) error {
	host, service := c.s.host.String(), c.service
	running := st.unit == "active" || st.unit == "activating" || st.unit == "reloading"
	switch {
	case st.socket == "denied" && (running || st.unit == ""), running && st.socket == "absent" && st.configured:
		if st.unit == "activating" && st.socket == "absent" {
			return refusal(ErrDaemonStopped, fmt.Sprintf("the daemon of %s is just starting", service), "try again, or see  ssh "+host+" systemctl status "+service)
		}
		return refusal(ErrDaemonRefuses, fmt.Sprintf("the daemon of %s is running, but %s may not use %s", service, st.user, c.socket),
			fmt.Sprintf("let the user in with  hotdeploy setup %s --deploy-user %s", host, st.user))
	case !st.daemon || !st.configured && !running:
		return c.missing(st)
	case !running:
		f := refusal(ErrDaemonStopped, fmt.Sprintf("the daemon of %s is not running (its unit is %s)", service, orUnknown(st.unit)),
			fmt.Sprintf("start it with  ssh %s sudo systemctl start %s", host, service))
		if f.State = "nothing is serving: the app ended with the daemon; nothing was changed"; st.populated {
			f.State = "processes of the app still run, without the daemon; nothing was changed"
		}
		return f
	}
	return cause
}

func (c *control) missing(st hostState) error {
	text := fmt.Sprintf("%s is not set up on this host", c.service)
	if len(st.services) > 0 {
		text += "; these are: " + clip(strings.Join(st.services, ", "), 200)
	}
	return refusal(ErrDaemonMissing, text, "set it up with  hotdeploy setup "+c.s.host.String())
}

func orUnknown(word string) string {
	if word == "" {
		return "unknown: no systemd"
	}
	return word
}

// CheckAPI refuses a daemon that speaks another major version of the API than this command.
func CheckAPI(name string, st api.Status) error {
	if st.API == api.Version {
		return nil
	}
	age, hint := "older", "install this command's daemon with  hotdeploy setup "+name
	if st.API > api.Version {
		age, hint = "newer", "use a hotdeploy of its version; or put this command's daemon in its place with  hotdeploy setup "+name
	}
	return refusal(ErrDaemonAPI, fmt.Sprintf("the daemon there is %s than this command: it is %s and speaks API %d, this command is %s and speaks API %d",
		age, st.Daemon.Version, st.API, version.String(), api.Version), hint)
}

// VersionWarning is a sentence if daemon and command are not of one version, else empty. They understand each other all the same.
func VersionWarning(name string, st api.Status) string {
	if st.Daemon.Version == version.String() {
		return ""
	}
	return fmt.Sprintf("the daemon there is %s, this command is %s; hotdeploy setup %s installs this command's", st.Daemon.Version, version.String(), name)
}
