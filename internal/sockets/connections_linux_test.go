package sockets

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

func TestConnections_CountsWhatEachGenerationAcceptedOnASharedSocket(t *testing.T) {
	eachNetwork(t, func(t *testing.T, s *Socket) {
		older, newer := startApp(t, nil, s.File), startApp(t, nil, s.File)
		check := func(what string, wantOlder, wantNewer int) {
			t.Helper()
			counts, err := ConnectionsOf(map[int][]int{1: older.pids(), 2: newer.pids()}, []*Socket{s})
			if err != nil || counts[1] != wantOlder || counts[2] != wantNewer {
				t.Errorf("%s: %v, %v, want %d and %d", what, counts, err, wantOlder, wantNewer)
			}
			both, err := Connections(append(older.pids(), newer.pids()...), []*Socket{s})
			if err != nil || both != wantOlder+wantNewer {
				t.Errorf("%s: %d together, %v", what, both, err)
			}
		}
		check("before anything", 0, 0)
		waiting := dial(t, s, 1)
		check("in the queue", 0, 0)
		older.do("accept", 1)
		check("accepted", 1, 0)
		accepted(t, s, newer, 5)
		check("and five by the newer", 1, 5)
		waiting[0].Close()
		check("closed by the client only", 1, 5)
		older.do("close", 1)
		newer.do("close", 2)
		check("closed by the apps", 0, 3)
		newer.stop()
		check("after its end", 0, 0)
	})
}

func TestConnections_FiveThousandAreCountedExactly(t *testing.T) {
	s, other := bind(t, "tcp", "127.0.0.1:0"), bind(t, "tcp", "127.0.0.1:0")
	a, b := startApp(t, nil, s.File), startApp(t, nil, other.File)
	accepted(t, other, b, 7)
	const many = 5000
	conns := accepted(t, s, a, many)
	for want := many; ; want -= 1234 {
		counts, err := ConnectionsOf(map[int][]int{1: a.pids(), 2: b.pids(), 3: {os.Getpid()}}, []*Socket{s, other})
		if err != nil || counts[1] != want || counts[2] != 7 || counts[3] != 0 { // the clients' ends are here
			t.Fatalf("%v, %v, want %d and 7", counts, err, want)
		}
		if want < 1234 {
			break
		}
		a.do("close", 1234)
	}
	if n, err := Connections(a.pids(), []*Socket{other}); err != nil || n != 0 {
		t.Errorf("on a listener that is not its own: %d, %v", n, err)
	}
	_ = conns
}

func TestConnections_OneThatTwoGenerationsHaveCountsForBoth(t *testing.T) {
	s := bind(t, "tcp", "127.0.0.1:0")
	client := dial(t, s, 1)[0]
	fd := -1
	if err := control(s.File, func(ln int) (err error) { fd, _, err = unix.Accept4(ln, unix.SOCK_CLOEXEC); return err }); err != nil {
		t.Fatal(err)
	}
	conn := os.NewFile(uintptr(fd), "conn")
	older, newer := startApp(t, nil, conn), startApp(t, nil, conn)
	conn.Close()
	counts, err := ConnectionsOf(map[int][]int{1: older.pids(), 2: newer.pids(), 3: append(older.pids(), newer.pids()...)}, []*Socket{s})
	if err != nil || counts[1] != 1 || counts[2] != 1 || counts[3] != 1 {
		t.Errorf("%v, %v", counts, err)
	}
	_ = client
}

func TestConnections_UDPHasNone(t *testing.T) {
	s := bind(t, "udp", "127.0.0.1:0")
	a := startApp(t, nil, s.File)
	if n, err := Connections(a.pids(), []*Socket{s}); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

func TestConnections_ProcessThatMayNotBeLookedIntoIsAnErrorNotANumber(t *testing.T) {
	s := bind(t, "tcp", "127.0.0.1:0")
	a := startApp(t, nil, s.File)
	accepted(t, s, a, 3)
	stranger := exec.Command("/proc/self/exe")
	stranger.SysProcAttr = asNobody(t)
	checkStranger(t, stranger, s, a, "counted 0, permission denied true; closed 0, forbidden true\n")
}

func TestCloseConnections_WhatAFilterOfSystemCallsForbidsIsTold(t *testing.T) {
	s := bind(t, "tcp", "127.0.0.1:0")
	a := startApp(t, nil, s.File)
	accepted(t, s, a, 3)
	stranger := exec.Command("/proc/self/exe")
	stranger.Env = []string{"FILTER=yes"}
	checkStranger(t, stranger, s, a, "counted 3, permission denied false; closed 0, forbidden true\n")
}

func checkStranger(t *testing.T, cmd *exec.Cmd, s *Socket, a *app, want string) {
	t.Helper()
	cmd.Env = append(cmd.Env, "TEST_APP=stranger", fmt.Sprintf("PID=%d", a.pids()[0]), "GORACE=atexit_sleep_ms=0")
	cmd.ExtraFiles = []*os.File{s.File}
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != want {
		t.Errorf("%v: it says %q, want %q", err, out, want)
	}
	if n, err := Connections(a.pids(), []*Socket{s}); n != 3 || err != nil {
		t.Errorf("afterwards there are %d, %v", n, err)
	}
}

// stranger tries what it may not, on process PID and the listener in descriptor 3.
func stranger() {
	pid, _ := strconv.Atoi(os.Getenv("PID"))
	if os.Getenv("FILTER") != "" {
		if err := forbidGetfd(); err != nil {
			fmt.Println(err)
		}
	}
	s, err := Adopt(os.NewFile(3, "web"), release.Listener{Network: "tcp", Address: "127.0.0.1:0"})
	if err != nil {
		fmt.Println(err)
		return
	}
	n, err := Connections([]int{pid}, []*Socket{s})
	fmt.Printf("counted %d, permission denied %v; ", n, errors.Is(err, os.ErrPermission))
	n, err = CloseConnections(context.Background(), []int{pid}, nil, []*Socket{s}, time.Hour)
	fmt.Printf("closed %d, forbidden %v\n", n, errors.Is(err, ErrForbidden))
}

// forbidGetfd does to this program what SystemCallFilter= does without pidfd_getfd in it.
func forbidGetfd() error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_PIDFD_GETFD},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return errno
	}
	return nil
}

// BenchmarkConnections: 9,900 connections in one process. The processor's time is what counts, also on a busy machine.
func BenchmarkConnections(b *testing.B) {
	const many = 9900 // the limit of descriptors is often just above
	s := bind(b, "tcp", "127.0.0.1:0")
	a := startApp(b, nil, s.File)
	accepted(b, s, a, many)
	before := cpuTime(b)
	for b.Loop() {
		if n, err := Connections(a.pids(), []*Socket{s}); n != many || err != nil {
			b.Fatal(n, err)
		}
	}
	b.ReportMetric((cpuTime(b)-before).Seconds()*1000/float64(b.N), "cpu-ms/op")
}

func cpuTime(b *testing.B) time.Duration {
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
