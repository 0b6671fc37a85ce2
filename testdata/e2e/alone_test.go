//go:build linux

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/testdata/apps"
	"github.com/hotdeploy/hotdeploy/testdata/lab"
	"github.com/hotdeploy/hotdeploy/testdata/load"
)

// loneApp is the app as systemd runs it on the common machine without hotdeployd.
type loneApp struct {
	*lab.Machine
	t    *testing.T
	unit string
	port int
}

// newLoneApp installs the app and its units (suffix and text), and starts the last one. {unit} and {port} are filled in.
func newLoneApp(t *testing.T, unit string, port int, units ...string) loneApp {
	t.Helper()
	h := loneApp{common(), t, unit, port}
	h.install(apps.Build(t, "wslive", "", ""))
	fill := strings.NewReplacer("{unit}", unit, "{port}", fmt.Sprint(port))
	for i := 0; i < len(units); i += 2 {
		if err := h.WriteFile(t.Context(), "/etc/systemd/system/"+unit+units[i], []byte(fill.Replace(units[i+1])), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(h.Journal(unit))
		}
		h.Enter(context.Background(), fill.Replace("systemctl stop {unit}.socket; systemctl kill -s KILL {unit}; rm -f /etc/systemd/system/{unit}.* /opt/{unit}; systemctl daemon-reload; systemctl reset-failed"))
	})
	h.run("systemctl daemon-reload && systemctl start " + unit + units[len(units)-2])
	h.await("listener", fmt.Sprintf("ss -Hltn sport = :%d", port), func(s string) bool { return s != "" })
	return h
}

// install replaces the name, as one should with a program that runs.
func (h loneApp) install(file string) {
	h.t.Helper()
	text, err := os.ReadFile(file)
	if err == nil {
		err = h.WriteFile(h.t.Context(), "/opt/"+h.unit+".new", text, 0o755)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	h.run("mv /opt/" + h.unit + ".new /opt/" + h.unit)
}

func (h loneApp) run(cmd string) string {
	h.t.Helper()
	out, err := h.Enter(h.t.Context(), cmd)
	if err != nil {
		h.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func (h loneApp) await(what, cmd string, ok func(string) bool) {
	h.t.Helper()
	for by := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		out := h.run(cmd)
		if ok(out) {
			return
		}
		if time.Now().After(by) {
			h.t.Fatalf("no %s: %s says %q", what, cmd, out)
		}
	}
}

func (h loneApp) load(websockets int) *load.Load {
	h.t.Helper()
	d, err := load.Start(h.t.Context(), load.Options{Addr: h.Addr(h.port), WebSockets: websockets, NewConnsPerSecond: 20, MessageInterval: 20 * time.Millisecond,
		Held: load.MayMove, RequestTimeout: 30 * time.Second, Dial: world.DialContext})
	if err != nil {
		h.t.Fatal(err)
	}
	if err := d.Ready(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	return d
}

func (h loneApp) stop(d *load.Load) load.Report {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r := d.Stop(ctx)
	h.t.Log(r)
	if err := r.Err(); err != nil {
		h.t.Error(err)
	}
	return r
}

const loneService = `[Service]
Type=%s
Environment=WSLIVE_ADDRESS=0.0.0.0:{port}
ExecStart=/opt/{unit}
%s
TimeoutStopSec=20
`

// Without hotdeployd a reload of the unit is the upgrade.
func TestAlone_UnderSystemd_ReloadMovesConnections(t *testing.T) {
	for i, tc := range []struct {
		kind  string
		front bool // systemd looks at one process only, which stays
	}{
		{kind: "notify"},
		{kind: "exec", front: true},
	} {
		t.Run(tc.kind, func(t *testing.T) {
			h := newLoneApp(t, "alone-"+tc.kind, 8470+i, ".service", fmt.Sprintf(loneService, tc.kind, "ExecReload=/bin/kill -HUP $MAINPID"))
			mainPID, serves := "systemctl show --value -p MainPID "+h.unit, fmt.Sprintf("ss -Hltnp sport = :%d | grep -o pid=[0-9]* | sort -u", h.port)
			d := h.load(50)
			for range 4 {
				pid, serving := h.run(mainPID), h.run(serves)
				h.run("systemctl reload " + h.unit)
				if tc.front {
					h.await("other process", serves, func(s string) bool { return s != serving && strings.Count(s, "pid") == 1 })
					if h.run(mainPID) != pid {
						t.Error("the main process has changed")
					}
				} else {
					h.await("other main process", mainPID, func(s string) bool { return s != pid })
				}
			}
			pid := h.run(mainPID)
			h.run(strings.ReplaceAll("printf broken > /opt/X.new && chmod +x /opt/X.new && mv /opt/X.new /opt/X && systemctl reload X", "X", h.unit))
			h.await("word of the failure", "journalctl -u "+h.unit, func(s string) bool { return strings.Contains(s, "upgrade failed") })
			h.await("end of the reload", "systemctl is-active "+h.unit, func(s string) bool { return s == "active" })
			if now := h.run(mainPID); now != pid {
				t.Errorf("main process %s, not %s", now, pid)
			}
			if r := h.stop(d); r.Changed != 50 {
				t.Errorf("%d of 50 changed process", r.Changed)
			}
			h.run("systemctl stop " + h.unit)
			// systemd 252 does not wait for a main process that was not its child when it was named: SIGKILL may follow SIGTERM at once.
			if result := h.run("systemctl show --value -p Result " + h.unit); result != "success" && tc.front {
				t.Errorf("the unit ended with %s", result)
			}
		})
	}
}

// With sockets from systemd, and nobody who starts the new process beside the old one, connections finish, and new ones wait.
func TestAlone_SocketActivation_DrainsAndLosesNobody(t *testing.T) {
	h := newLoneApp(t, "alone-socket", 8480, ".service", fmt.Sprintf(loneService, "notify", ""), ".socket", "[Socket]\nListenStream={port}\n")
	d := h.load(0)
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return world.DialContext(ctx, network, addr)
	}}}
	for range 3 {
		answer := make(chan string, 1)
		go func() {
			res, err := client.Get("http://" + h.Addr(h.port) + "/slow?for=2s")
			if err != nil {
				answer <- err.Error()
				return
			}
			defer res.Body.Close()
			b, _ := io.ReadAll(res.Body)
			answer <- string(b)
		}()
		h.await("the slow request", fmt.Sprintf("ss -Htn state established sport = :%d", h.port), func(s string) bool { return s != "" })
		h.run("systemctl restart " + h.unit)
		if got := <-answer; !strings.Contains(got, "slow but there") {
			t.Errorf("a request that was there before the restart got %q", got)
		}
	}
	h.stop(d)
}
