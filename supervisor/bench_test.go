package supervisor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/procs"
	"github.com/hotdeploy/hotdeploy/systemd"
	"github.com/hotdeploy/hotdeploy/testdata/apps"
)

// The benchmarks run the real daemon, and compare within one run: go test -run '^$' -bench . -benchtime 10x ./supervisor

// newDaemonRig starts the daemon's binary on an empty root.
func newDaemonRig(b *testing.B) (*rig, *exec.Cmd) {
	b.Helper()
	r := emptyRig(b)
	binary := filepath.Join(r.dir, "hotdeployd")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "../cmd/hotdeployd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("build the daemon: %v\n%s", err, out)
	}
	cmd := exec.Command(binary, "run", "--service", "echo", "--root", r.cfg.Root, "--run-dir", r.cfg.RunDir)
	cmd.Stderr = r.log
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	b.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		<-done
	})
	r.connect(done)
	return r, cmd
}

func median(ds []time.Duration) time.Duration {
	slices.Sort(ds)
	return ds[len(ds)/2]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// BenchmarkStartUp: what an upgrade adds to the app's own time from its start to READY=1. Goal: at most 50 ms.
func BenchmarkStartUp(b *testing.B) {
	r, _ := newDaemonRig(b)
	r.push("0")
	app := apps.Build(b, "wsecho", "", "")
	var alone, upgraded []time.Duration
	for i := 0; b.Loop(); i++ {
		alone = append(alone, startAlone(b, app))
		version := strconv.Itoa(i + 1)
		r.install(version)
		u := r.upgrade(api.KindPush, version)
		var took time.Duration
		for _, p := range u.Phases {
			if p.Phase == api.PhaseVerify || p.Phase == api.PhaseStart || p.Phase == api.PhaseReady {
				took += p.Took
			}
		}
		upgraded = append(upgraded, took)
	}
	b.ReportMetric(ms(median(alone)), "alone-ms")
	b.ReportMetric(ms(median(upgraded)), "upgrade-ms")
	b.ReportMetric(ms(median(upgraded)-median(alone)), "added-ms")
	b.ReportMetric(0, "ns/op")
}

// startAlone is the time from exec to READY=1, without a supervisor.
func startAlone(b *testing.B, app string) time.Duration {
	sock, err := systemd.NotifyListen(filepath.Join(b.TempDir(), "n"))
	if err != nil {
		b.Fatal(err)
	}
	defer sock.Close()
	cmd := exec.Command(app, "-addr", "127.0.0.1:0")
	cmd.Env = []string{"NOTIFY_SOCKET=" + sock.Path()}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		msg, _, err := sock.Recv(ctx)
		if err != nil {
			b.Fatal(err)
		}
		if msg.Ready {
			return time.Since(began)
		}
	}
}

// BenchmarkSlowestNewConnection: the slowest of 200 new connections a second in two seconds, with an upgrade in the middle
// and without. Goal: at most 20 ms more, at the median.
func BenchmarkSlowestNewConnection(b *testing.B) {
	r, _ := newDaemonRig(b)
	r.push("0")
	l := startLoad(b, r.addr, 100, 200)
	var quiet, busy []time.Duration
	window := func(f func()) time.Duration {
		from := time.Now()
		f()
		<-time.After(time.Until(from.Add(2 * time.Second))) // a window has a length
		return l.Latency(from, time.Now()).Slowest
	}
	for i := 0; b.Loop(); i++ {
		version := strconv.Itoa(i + 1)
		r.install(version)
		quiet = append(quiet, window(func() {}))
		busy = append(busy, window(func() { r.upgrade(api.KindPush, version) }))
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := l.Stop(ctx).Err(); err != nil {
		b.Error(err)
	}
	b.ReportMetric(ms(median(quiet)), "quiet-ms")
	b.ReportMetric(ms(median(busy)), "upgrade-ms")
	b.ReportMetric(ms(median(busy)-median(quiet)), "added-ms")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkIdle: what the daemon costs while it does nothing: resident memory (goal: at most 20 MB) and processor time over
// ten seconds (goal: nothing measurable).
func BenchmarkIdle(b *testing.B) {
	r, cmd := newDaemonRig(b)
	r.push("1")
	r.push("2")
	const watched = 10 * time.Second
	var cpu time.Duration
	for b.Loop() {
		before := processorTime(b, cmd.Process.Pid)
		<-time.After(watched) // it is the time that is measured
		cpu = processorTime(b, cmd.Process.Pid) - before
	}
	b.ReportMetric(float64(procs.ResidentBytes(cmd.Process.Pid))/1e6, "resident-MB")
	b.ReportMetric(100*float64(cpu)/float64(watched), "cpu-percent")
	b.ReportMetric(0, "ns/op")
}

// processorTime is utime+stime of proc(5), in clock ticks of 10 ms.
func processorTime(b *testing.B, pid int) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')'):]))
	user, _ := strconv.Atoi(f[12])
	system, _ := strconv.Atoi(f[13])
	return time.Duration(user+system) * 10 * time.Millisecond
}
