package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/testdata/load"
)

// With systemd holding the sockets even a restart of the daemon refuses nobody: who comes meanwhile waits.
func TestSocketActivation_RestartOfTheUnit_ClientsWait(t *testing.T) {
	s := newProject(t).on(common())
	s.setup("--socket-activation").wantText(s.service + "-http.socket")
	s.push("1").want(0)
	if ls := s.status().Listeners; len(ls) != 1 || ls[0].Source != "systemd" {
		t.Errorf("listeners %+v", ls)
	}
	l := s.load(load.Options{NewConnsPerSecond: 100, RequestTimeout: 30 * time.Second})
	beat(t, l)
	began := time.Now()
	s.run("systemctl restart NAME.service")
	s.daemon.Close()
	beat(t, l)
	t.Logf("restarted and serving after %s", time.Since(began).Round(time.Millisecond))
	s.push("2").want(0)
	s.serves("2")
	s.run("systemctl kill -s KILL --kill-whom=all NAME.service")
	s.daemon.Close()
	until(t, "it serves after the kill", func() bool { st, err := s.askStatus(); return err == nil && st.State == "serving" })
	beat(t, l)
	r := stopLoad(l)
	onlyLost(t, r)
	t.Logf("%d requests, %d failed %v, slowest %s", r.RequestsOK, r.RequestsFailed, r.RequestFailures, r.Latency.Slowest.Round(time.Millisecond))
	if got := s.consistent(); got != "2" {
		t.Errorf("release %s serves", got)
	}
	if out := s.hotdeploy("setup", s.host, "--socket-activation").want(0).text(); !strings.Contains(out, "nothing to change") {
		t.Errorf("set up again:\n%s", out)
	}
}

// talk asks a unix stream socket and a datagram port on the machine to echo, which wsecho does.
const talk = `python3 -c '
import socket, sys
u = socket.socket(socket.AF_UNIX); u.settimeout(20); u.connect(sys.argv[2]); u.sendall(b"over unix\n"); print(u.recv(100).decode().strip())
d = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); d.settimeout(20); d.connect(("127.0.0.1", int(sys.argv[1]))); d.send(b"over udp"); print(d.recv(100).decode())
' %d %s`

// Every kind of socket, bound by the daemon or by systemd, is there through pushes and goes when a release drops it.
func TestListeners_UnixAndUDP(t *testing.T) {
	for _, by := range []string{"daemon", "systemd"} {
		t.Run("bound by "+by, func(t *testing.T) {
			s := newProject(t).on(common())
			only, named, path := s.base, "lines.sock", s.named("/run/NAME/lines.sock")
			if by == "systemd" { // whose sockets outlive the service and its folder
				path = s.named("/run/NAME-lines.sock")
				named = path
			}
			s.base.More = fmt.Sprintf("[[listen]]\nname = \"lines\"\nnetwork = \"unix\"\naddress = \"%s\"\nmode = \"0666\"\n"+
				"[[listen]]\nname = \"packets\"\nnetwork = \"udp\"\naddress = \":%d\"\n", named, s.port+1000)
			s.setup(fmt.Sprintf("--socket-activation=%t", by == "systemd"))
			for _, v := range []string{"1", "2"} {
				s.push(v).want(0)
				if out := s.run(fmt.Sprintf(talk, s.port+1000, path)); out != "over unix\nover udp" {
					t.Errorf("release %s echoes %q", v, out)
				}
				s.serves(v)
			}
			for _, l := range s.status().Listeners {
				if (l.Source == "systemd") != (by == "systemd") {
					t.Errorf("listener %+v", l)
				}
			}
			if mode := s.run("stat -c %a " + path); mode != "666" {
				t.Errorf("the socket's mode is %s", mode)
			}
			s.base = only
			s.push("3").want(0)
			s.serves("3")
			gone := func() bool {
				return s.run("python3 -c 'import socket; print(socket.socket(socket.AF_UNIX).connect_ex(\""+path+"\"))'") != "0"
			}
			if by == "daemon" { // closed soon after, when nobody uses it
				until(t, "the listener that release 3 dropped to be closed", gone)
			} else if gone() {
				t.Error("systemd's own listener is gone while its unit runs")
			}
		})
	}
}
