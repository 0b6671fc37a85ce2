package supervisor

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/internal/sockets"
)

func listening(ls ...release.Listener) change {
	return func(s *release.Spec) { s.Listeners = ls; s.Resolve() }
}

func (r *rig) http() release.Listener {
	return release.Listener{Name: "http", Network: "tcp", Address: r.addr}
}

func TestListeners_TwoWithPortZero_AreTwoAndStayWhatTheyAre(t *testing.T) {
	r := newRig(t)
	zero := func(name string) release.Listener {
		return release.Listener{Name: name, Network: "tcp", Address: "127.0.0.1:0"}
	}
	r.push("1", listening(zero("a"), zero("b")))
	before := map[string]string{}
	for _, l := range r.status().Listeners {
		before[l.Name] = l.Bound
	}
	if len(before) != 2 || before["a"] == before["b"] {
		t.Fatalf("bound: %v", before)
	}
	r.push("2", listening(zero("b"), zero("c"), zero("a")))
	var names []string
	for _, l := range r.status().Listeners {
		if names = append(names, l.Name); l.Name != "c" && l.Bound != before[l.Name] {
			t.Errorf("%s moved from %s to %s", l.Name, before[l.Name], l.Bound)
		}
	}
	if got := strings.Join(names, " "); got != "b c a" {
		t.Errorf("in the order %s, not that of the release", got)
	}
}

// A name server that does not answer must not stop everything else.
func TestListeners_BindingTakesLong_EverythingElseGoesOn(t *testing.T) {
	r := emptyRig(t)
	asked, answer := make(chan struct{}), make(chan error)
	r.adapt = func(s *Supervisor) {
		s.bind = func(l release.Listener, runDir string) (*sockets.Socket, error) {
			if l.Name == "slow" {
				close(asked)
				return nil, <-answer
			}
			return sockets.Bind(l, runDir)
		}
	}
	r.start()
	first := r.push("1")
	r.install("2", listening(r.http(), release.Listener{Name: "slow", Network: "tcp", Address: "example.org:80"}))
	u, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindPush, Version: "2", By: "tester"})
	if err != nil {
		t.Fatal(err)
	}
	<-asked
	if st := r.status(); st.Upgrade == nil || st.Upgrade.Phase != api.PhaseStart || !r.serves("1") {
		t.Errorf("meanwhile: %s", st.Text)
	}
	r.killServing()
	r.awaitText(fmt.Sprintf("generation %d (1) was killed", first.Generation))
	answer <- errors.New("no such host")
	if got := r.outcome(u.ID); got.Outcome != api.NothingChanged || !errors.Is(got.Error, api.ErrListen) || !strings.Contains(got.Error.Message, "no such host") {
		t.Errorf("%s: %+v", got.Outcome, got.Error)
	}
	if !r.serves("1") {
		t.Error("1 does not come back")
	}
}

func TestListeners_OwnPortUnderAnotherAddress_SaysSo(t *testing.T) {
	r := newRig(t)
	r.push("1")
	_, port, _ := net.SplitHostPort(r.addr)
	other := listening(release.Listener{Name: "web", Network: "tcp4", Address: ":" + port})
	r.install("2", other)
	u := r.upgrade(api.KindPush, "2")
	if u.Outcome != api.NothingChanged || !errors.Is(u.Error, api.ErrListen) || !strings.Contains(u.Error.Message, "listener http of this service") || !strings.Contains(u.Error.Hint, "hotdeploy stop") {
		t.Errorf("%s: %+v", u.Outcome, u.Error)
	}
	if !r.serves("1") {
		t.Error("1 does not serve")
	}
	if _, err := r.client.Stop(r.ctx(), api.StopRequest{By: "tester"}); err != nil { // as the hint says
		t.Fatal(err)
	}
	if r.push("2", other); !r.serves("2") {
		t.Error("2 does not serve")
	}
}

// dialLines opens a connection to the listener that echoes lines, and returns what sends one and expects it back.
func dialLines(t *testing.T, path string) (echo func()) {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	in, n := bufio.NewReader(c), 0
	return func() {
		t.Helper()
		n++
		line := fmt.Sprintf("line %d\n", n)
		if _, err := io.WriteString(c, line); err != nil {
			t.Fatal(err)
		}
		if got, err := in.ReadString('\n'); err != nil || got != line {
			t.Fatalf("%q, %v", got, err)
		}
	}
}

func TestListeners_UnixAndUDP_AcrossUpgrades(t *testing.T) {
	r := newRig(t)
	udp := freeAddr(t)
	lines := release.Listener{Name: "lines", Network: "unix", Address: "lines.sock"}
	path := filepath.Join(r.cfg.RunDir, "lines.sock")
	all := listening(r.http(), lines, release.Listener{Name: "dgram", Network: "udp", Address: udp})
	// A dead one's file is in the way, as after a power cut.
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	first := r.push("1", all)
	old := dialLines(t, path)
	old()
	datagram, err := net.Dial("udp", udp)
	if err != nil {
		t.Fatal(err)
	}
	defer datagram.Close()
	for _, v := range []string{"2", "3"} {
		r.awaitDraining(r.push(v, all).Generation - 1)
		old()
		dialLines(t, path)()
		datagram.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := datagram.Write([]byte(v)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 10)
		if n, err := datagram.Read(b); err != nil || string(b[:n]) != v {
			t.Errorf("datagram: %q, %v", b[:n], err)
		}
	}
	for _, g := range r.status().Generations {
		if want := map[int]int{first.Generation: 1, first.Generation + 1: 1, first.Generation + 2: 1}[g.Number]; g.Connections != want {
			t.Errorf("generation %d has %d connections, not %d", g.Number, g.Connections, want)
		}
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	// The same path written in another way, another name, another mode.
	lines.Name, lines.Address, lines.Mode = "text", path, "0600"
	r.install("bad", env("WSECHO_EXIT_AT_START", "1"), listening(r.http(), lines))
	r.upgrade(api.KindPush, "bad")
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("after a failed upgrade: %v, %v", st.Mode(), err)
	}
	r.push("4", listening(r.http(), lines))
	old()
	dialLines(t, path)()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 || r.status().Listeners[1].Name != "text" {
		t.Errorf("%v, %v, %+v", st.Mode(), err, r.status().Listeners)
	}
	if _, err := r.client.Stop(r.ctx(), api.StopRequest{By: "tester", Now: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket's file after a stop: %v", err)
	}
}

func TestListeners_UnixPathInUseByAStranger_NothingChanged(t *testing.T) {
	r := newRig(t)
	r.push("1")
	path := filepath.Join(r.dir, "stranger.sock")
	stranger, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	r.install("2", listening(r.http(), release.Listener{Name: "lines", Network: "unix", Address: path}))
	if u := r.upgrade(api.KindPush, "2"); u.Outcome != api.NothingChanged || !errors.Is(u.Error, api.ErrListen) {
		t.Errorf("%s: %+v", u.Outcome, u.Error)
	}
	if _, err := net.Dial("unix", path); err != nil {
		t.Errorf("the stranger's socket: %v", err)
	}
}

// passed is a listening socket as systemd passes it: a file with a name.
func passed(t *testing.T, addr, name string) *os.File {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var fd int
	raw, err := f.SyscallConn()
	if err == nil {
		err = raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), name)
}

func TestListeners_FromSystemd_ByName(t *testing.T) {
	r := emptyRig(t)
	r.prepare = func(o *Options) {
		o.Sockets = []*os.File{passed(t, "127.0.0.1:0", "other"), passed(t, r.addr, "http")}
	}
	r.start()
	r.push("1")
	r.push("2")
	if l := r.status().Listeners; len(l) != 1 || l[0].Source != "systemd" || l[0].Bound != r.addr {
		t.Errorf("%+v", l)
	}
	r.install("3", listening(r.http(), release.Listener{Name: "other", Network: "tcp", Address: "127.0.0.1:1"}))
	if u := r.upgrade(api.KindPush, "3"); u.Outcome != api.NothingChanged || !errors.Is(u.Error, api.ErrListen) || !strings.Contains(u.Error.Message, "systemd") {
		t.Errorf("another address than systemd's: %s: %+v", u.Outcome, u.Error)
	}
	// systemd's sockets stay open, also while nothing runs: its own copy takes connections all the same.
	if _, err := r.client.Stop(r.ctx(), api.StopRequest{By: "tester"}); err != nil {
		t.Fatal(err)
	}
	answered := make(chan string)
	go func() {
		res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + r.addr + "/version")
		if err != nil {
			answered <- err.Error()
			return
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		answered <- string(b)
	}()
	if st, err := r.client.Start(r.ctx(), api.StopRequest{By: "tester"}); err != nil || st.State != api.StateServing {
		t.Fatalf("%+v, %v", st, err)
	}
	if got := <-answered; got != "2" {
		t.Errorf("who asked while nothing ran got %s", got)
	}
}
