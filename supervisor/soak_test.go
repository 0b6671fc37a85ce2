package supervisor

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/procs"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/testdata/load"
)

var upgrades = flag.Int("upgrades", 15, "how many upgrades in a row the soak makes; make soak makes more")

// footprint is what a process takes from its machine.
type footprint struct {
	Goroutines  int   `json:"goroutines"`
	Heap        int64 `json:"heap"`
	descriptors int
	rss         int64
}

// ownFootprint is what only the process itself can tell, after it has thrown away what it can.
func ownFootprint() footprint {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return footprint{Goroutines: runtime.NumGoroutine(), Heap: int64(m.HeapAlloc)}
}

// tellFootprint answers whoever connects to the socket.
func tellFootprint(path string) error {
	os.Remove(path) // of the daemon before this one
	ln, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	go func() { // ends with the process
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			json.NewEncoder(c).Encode(ownFootprint())
			c.Close()
		}
	}()
	return nil
}

func (f *footprint) lookAt(t *testing.T, pid int) {
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	f.descriptors, f.rss = len(fds), procs.ResidentBytes(pid)
}

// taken is what daemon, app and folders take at one moment of the soak.
type taken struct {
	daemon, app footprint
	files       string // everything but what is in releases
	releases    int
	history     int64
	state       int64 // the state file and the ledger
	kept        int   // descriptors in the fd store
}

func (r *crashRig) take(t *testing.T) (now taken) {
	t.Helper()
	st := r.status()
	c, err := net.Dial("unix", r.spec.Footprint)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := json.NewDecoder(c).Decode(&now.daemon); err != nil {
		t.Fatal(err)
	}
	now.daemon.lookAt(t, st.Daemon.PID)
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + r.addr + "/self")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&now.app); err != nil {
		t.Fatal(err)
	}
	now.app.lookAt(t, st.Generations[0].PID)
	now.kept = len(r.manager.names())
	r.measureFolders(t, &now)
	return now
}

func (r *crashRig) measureFolders(t *testing.T, now *taken) {
	t.Helper()
	var names []string
	for _, dir := range []string{r.cfg.Root, r.cfg.RunDir, r.spec.Cgroup} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case filepath.Base(filepath.Dir(path)) == "releases":
				now.releases++
				return fs.SkipDir
			case dir == r.spec.Cgroup && path != dir:
				if d.IsDir() {
					names = append(names, "a cgroup")
					return fs.SkipDir
				}
				return nil
			}
			names = append(names, strings.TrimPrefix(path, r.dir))
			if info, err := d.Info(); err == nil {
				switch d.Name() {
				case "history.jsonl":
					now.history = info.Size()
				case "supervisor.json", "running.json":
					now.state += info.Size()
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	now.files = strings.Join(names, " ")
}

// isNoMoreThan tells what is more than at the beginning. Memory may be a little more: the newest events are kept, some hundred of them.
func (now taken) isNoMoreThan(then taken) (more []string) {
	const slack = 6 << 20
	for _, c := range []struct {
		what      string
		now, then int64
	}{
		{"descriptors of the daemon", int64(now.daemon.descriptors), int64(then.daemon.descriptors)},
		{"goroutines of the daemon", int64(now.daemon.Goroutines), int64(then.daemon.Goroutines)},
		{"heap of the daemon", now.daemon.Heap, then.daemon.Heap + slack},
		{"memory of the daemon", now.daemon.rss, then.daemon.rss + 2*slack},
		{"descriptors of the app", int64(now.app.descriptors), int64(then.app.descriptors)},
		{"goroutines of the app", int64(now.app.Goroutines), int64(then.app.Goroutines)},
		{"heap of the app", now.app.Heap, then.app.Heap + slack},
		{"memory of the app", now.app.rss, then.app.rss + 2*slack},
		{"releases", int64(now.releases), int64(then.releases)},
		{"state", now.state, then.state + 1<<10},
		{"descriptors in the fd store", int64(now.kept), int64(then.kept)},
	} {
		if c.now > c.then {
			more = append(more, fmt.Sprintf("%s: %d, it was %d", c.what, c.now, c.then))
		}
	}
	if now.files != then.files {
		more = append(more, fmt.Sprintf("files: %s, it was %s", now.files, then.files))
	}
	return more
}

func (now taken) String() string {
	mib := func(n int64) float64 { return float64(n) / (1 << 20) }
	side := func(f footprint) string {
		return fmt.Sprintf("%3d fds, %4d goroutines, heap %5.2f MiB, RSS %5.1f MiB", f.descriptors, f.Goroutines, mib(f.Heap), mib(f.rss))
	}
	return fmt.Sprintf("daemon: %s; app: %s; %d releases, history %d KiB, state %d B", side(now.daemon), side(now.app), now.releases, now.history>>10, now.state)
}

// TestSoak_ManyUpgradesInARow holds the same connections across all of them, and looks whether anything becomes more: of descriptors, goroutines,
// memory, files.
func TestSoak_ManyUpgradesInARow(t *testing.T) {
	const warm, websockets = 10, 100
	r := newCrashRig(t, crashModes[0])
	r.kill()
	r.spec.Footprint = filepath.Join(r.dir, "footprint.sock")
	r.boot()
	short := func(s *release.Spec) { s.Soak.Duration, s.Releases.Keep = release.Duration(20*time.Millisecond), 3 }
	r.push("0", short)
	l, err := load.Start(context.Background(), load.Options{Addr: r.addr, WebSockets: websockets, NewConnsPerSecond: 5, Held: load.MayMove})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Ready(r.ctx()); err != nil {
		t.Fatal(err)
	}
	var then taken
	for n := 1; n <= *upgrades; n++ {
		version := fmt.Sprint(n)
		u := r.push(version, short)
		if u.Handoff == nil || u.Handoff.Moved < websockets {
			t.Fatalf("upgrade %d: %+v", n, u.Handoff)
		}
		os.RemoveAll(filepath.Join(r.dir, "src-"+version))
		if n == warm || n%100 == 0 {
			r.consistent(version) // also that the generation before has gone
			now := r.take(t)
			if t.Logf("after %4d: %s", n, now); n == warm {
				then = now
			}
		}
	}
	r.consistent(fmt.Sprint(*upgrades))
	now := r.take(t)
	for limit := time.Now().Add(30 * time.Second); len(now.isNoMoreThan(then)) > 0 && time.Now().Before(limit); now = r.take(t) {
		<-time.After(20 * time.Millisecond) // requests of the load come and go
	}
	t.Logf("at the end: %s", now)
	if more := now.isNoMoreThan(then); len(more) > 0 && *upgrades > warm {
		t.Errorf("more than after %d upgrades:\n%s", warm, strings.Join(more, "\n"))
	}
	report := l.Stop(r.ctx())
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	t.Logf("%s", report)
	if h, err := r.client.History(r.ctx(), 1000); err != nil || len(h) != min(*upgrades+1, 1000) || h[0].Outcome != api.Done {
		t.Errorf("the history has %d entries, %v", len(h), err)
	}
}
