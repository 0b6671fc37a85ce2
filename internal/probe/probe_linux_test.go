package probe

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/internal/sockets"
)

var (
	onTCP  = release.Probe{Check: release.CheckTCP}
	onHTTP = release.Probe{Check: release.CheckHTTP, Path: "/healthz"}
)

func TestCheck_AnswerIsThatOfTheGenerationAndNotOfTheOneBesideIt(t *testing.T) {
	for _, l := range [][2]string{{"tcp", "127.0.0.1:0"}, {"tcp", ":0"}, {"tcp6", ":0"}, {"unix", "a.sock"}} {
		t.Run(strings.Join(l[:], " "), func(t *testing.T) {
			s := bind(t, l[0], l[1])
			older, newer := startApp(t, s, "older"), startApp(t, s, "ok")
			older.do("accept")
			newer.do("accept")
			for range 20 {
				if err := Check(within(t), onHTTP, newer.target(s)); err != nil {
					t.Fatalf("the newer one: %v", err)
				}
				saysWhat(t, Check(within(t), onHTTP, older.target(s)), "GET /healthz: 503 Service Unavailable: older")
			}
			inParallel(8, func() {
				if err := Check(within(t), onHTTP, newer.target(s)); err != nil {
					t.Errorf("one of many at once: %v", err)
				}
			})
			if got := older.do("report"); got != 20 {
				t.Errorf("the older one was spoken to %d times, want 20", got)
			}
			if got := newer.do("report"); got != 28 {
				t.Errorf("the newer one was spoken to %d times, want 28", got)
			}
		})
	}
}

func TestCheck_GenerationThatDoesNotAcceptYetIsNotReady(t *testing.T) {
	alone := bind(t, "tcp", "127.0.0.1:0")
	saysWhat(t, Check(soon(t), onTCP, startApp(t, alone, "ok").target(alone)), "it accepted no connection on "+alone.Addr)
	for _, p := range []release.Probe{onTCP, onHTTP} {
		s := bind(t, "tcp", "127.0.0.1:0")
		older, newer := startApp(t, s, "older"), startApp(t, s, "ok")
		older.do("accept")
		// a second connection comes when it is known who has accepted the first
		saysWhat(t, Check(older.until("accepted", 2), p, newer.target(s)), "it accepted no connection on "+s.Addr, "other processes accepted")
		if got := older.do("report"); got != 0 {
			t.Errorf("the older one got bytes that were not for it, on %d connections", got)
		}
		if err := Check(within(t), onTCP, older.target(s)); err != nil {
			t.Error(err)
		}
	}
}

// unnoticed is a context whose deadline passes and nobody notices.
type unnoticed struct {
	context.Context
	by time.Time
}

func (u unnoticed) Deadline() (time.Time, bool) { return u.by, true }

func TestCheck_DialThatEndsBeforeItsContextDoes_SaysWhatWasWaitedFor(t *testing.T) {
	s := bind(t, "tcp", "127.0.0.1:0")
	target := startApp(t, s, "ok").target(s)
	saysWhat(t, Check(unnoticed{t.Context(), time.Unix(1, 0)}, onTCP, target), "it accepted no connection on "+s.Addr)
	if err := unix.Listen(int(s.File.Fd()), 0); err != nil { // its queue has room for one
		t.Fatal(err)
	}
	c, err := s.Dial(within(t))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	saysWhat(t, Check(unnoticed{t.Context(), time.Now().Add(50 * time.Millisecond)}, onTCP, target), "it accepted no connection on "+s.Addr)
}

func TestWaitReady_PassesAsSoonAsTheGenerationAccepts(t *testing.T) {
	for _, beside := range []bool{false, true} {
		t.Run(fmt.Sprintf("beside an older one %v", beside), func(t *testing.T) {
			s := bind(t, "tcp", "127.0.0.1:0")
			newer := startApp(t, s, "ok")
			if beside {
				startApp(t, s, "older").do("accept")
			}
			ready := make(chan error, 1)
			ctx := within(t)
			go func() { ready <- WaitReady(ctx, release.Ready{Probe: onHTTP}, newer.target(s)) }()
			select {
			case err := <-ready:
				t.Fatalf("ready before it accepts: %v", err)
			default:
			}
			newer.do("accept")
			if err := <-ready; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestWaitReady_EndsWithTheLastFailure(t *testing.T) {
	s := bind(t, "tcp", "127.0.0.1:0")
	a := startApp(t, s, "database is away")
	a.do("accept")
	saysWhat(t, WaitReady(a.until("asked", 2), release.Ready{Probe: onHTTP}, a.target(s)), "503 Service Unavailable: database is away")

	for _, tt := range []struct {
		path string
		n    int
		want []string
	}{
		{"/hang", 1, []string{"GET /hang: no answer in time"}},
		{"/fades", 2, []string{"GET /fades: no answer in time", "before that: GET /fades: 503 Service Unavailable: not yet"}},
	} {
		s := bind(t, "tcp", "127.0.0.1:0")
		a := startApp(t, s, "ok")
		a.do("accept")
		p := release.Probe{Check: release.CheckHTTP, Path: tt.path}
		saysWhat(t, WaitReady(a.until("asked", tt.n), release.Ready{Probe: p}, a.target(s)), tt.want...)
	}
}

func TestCheck_WhatCannotBeAsked(t *testing.T) {
	s := bind(t, "udp", "127.0.0.1:0")
	target := Target{First: s, Sockets: map[string]*sockets.Socket{"web": s}, Pids: func() []int { return nil }}
	saysWhat(t, Check(within(t), onTCP, target), "udp")
	saysWhat(t, Check(within(t), onTCP, Target{}), "there is no listener")
	saysWhat(t, Check(within(t), release.Probe{Check: release.CheckTCP, Listener: "api"}, target), `no listener "api"`)
	saysWhat(t, Check(within(t), release.Probe{Check: release.CheckNotify}, target), `"notify"`)
	saysWhat(t, Check(within(t), release.Probe{Check: release.CheckCommand}, target), "no command")
}

func TestCheck_ListenerIsChosenByName(t *testing.T) {
	web, api := bind(t, "tcp", "127.0.0.1:0"), bind(t, "tcp", "127.0.0.1:0")
	a := startApp(t, api, "ok")
	a.do("accept")
	target := a.target(web)
	target.Sockets = map[string]*sockets.Socket{"web": web, "api": api}
	if err := Check(within(t), release.Probe{Check: release.CheckTCP, Listener: "api"}, target); err != nil {
		t.Error(err)
	}
	saysWhat(t, Check(soon(t), onTCP, target), "it accepted no connection on "+web.Addr)
}

func TestReach_ConnectionsThatAreSlammedShutAreGivenUp(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		s := bind(t, network, map[string]string{"tcp": "127.0.0.1:0", "unix": "a.sock"}[network])
		a := startApp(t, s, "ok")
		try := attempt{s: s, pids: a.target(s).Pids}
		defer try.close()
		if err := try.open(t.Context(), 2); err != nil {
			t.Fatal(err)
		}
		a.do("slam")
		for c, err := try.look(); try.lost == 0; c, err = try.look() { // until the end of the connection is here
			if c != nil || err != nil {
				t.Fatal(c, err)
			}
		}
		if len(try.waiting) != 1 {
			t.Errorf("%s: %d are waiting", network, len(try.waiting))
		}
		saysWhat(t, try.failure(), "closed at once, 1 of them")
	}
}

func TestReach_NeighbourThatWinsEverySingleConnectionIsOutrun(t *testing.T) {
	s := bind(t, "tcp", "127.0.0.1:0")
	older := startApp(t, s, "exclusive")
	older.do("")
	newer := startApp(t, s, "exclusive")
	newer.do("")
	for _, a := range []*app{newer, older} {
		if err := Check(within(t), onTCP, a.target(s)); err != nil {
			t.Error(err)
		}
	}
}

func TestCheck_HTTP(t *testing.T) {
	s := bind(t, "tcp", "127.0.0.1:0")
	a := startApp(t, s, "ok")
	a.do("accept")
	tests := []struct {
		path, host string
		want       string // in the error; empty: healthy
	}{
		{"", "", ""},
		{"/", "", ""},
		{"/moved", "", ""},
		{"/hints", "", ""},
		{"/host?a=b", "", "GET /host?a=b: 418 I'm a teapot: localhost GET /host?a=b hotdeploy"},
		{"/host", "example.org", "example.org GET /host hotdeploy"},
		{"/drop", "", "GET /drop: the connection was closed before the answer"},
		{"/head", "", "GET /head: the connection was closed before the answer, or the answer's head is too long"},
	}
	for _, tt := range tests {
		err := Check(within(t), release.Probe{Check: release.CheckHTTP, Path: tt.path, Host: tt.host}, a.target(s))
		if tt.want != "" {
			saysWhat(t, err, tt.want)
		} else if err != nil {
			t.Errorf("%s: %v", tt.path, err)
		}
	}
	s = bind(t, "tcp", "127.0.0.1:0")
	a = startApp(t, s, "ok")
	a.do("accept")
	saysWhat(t, Check(a.until("asked", 1), release.Probe{Check: release.CheckHTTP, Path: "/hang"}, a.target(s)), "GET /hang: no answer in time")
}

func TestCheck_LongAndWildAnswersFitOnOneLine(t *testing.T) {
	s := bind(t, "tcp", "127.0.0.1:0")
	a := startApp(t, s, "a\x1b[31m\nb\xff\u200b "+strings.Repeat("ä", 5000))
	a.do("accept")
	err := Check(within(t), onHTTP, a.target(s))
	saysWhat(t, err, "503 Service Unavailable: a[31m b? ää")
	if err != nil && (len([]rune(err.Error())) > 300 || !strings.HasSuffix(err.Error(), "ä...")) {
		t.Errorf("it is %q", err)
	}
}

func TestCheck_ContextThatHasEnded(t *testing.T) {
	s := bind(t, "tcp", "127.0.0.1:0")
	a := startApp(t, s, "ok")
	a.do("accept")
	ended, cancel := context.WithTimeout(t.Context(), -time.Second)
	defer cancel()
	for _, p := range []release.Probe{onTCP, onHTTP, {Check: release.CheckCommand, Command: []string{"/bin/sleep", "60"}}} {
		if err := Check(ended, p, a.target(s)); err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", p.Check, err)
		}
	}
}
