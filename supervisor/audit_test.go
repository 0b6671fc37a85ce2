package supervisor

import (
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"
)

// audit looks when the test is over whether anything of it is left: goroutines of ours, open files, child processes, files
// in the run directory. Call it before anything else; what it compares with is now.
func audit(t testing.TB, runDir string) {
	t.Helper()
	files := openFiles(t)
	t.Cleanup(func() {
		if t.Failed() {
			return // what went wrong explains what is left
		}
		left := leftovers(t, files, runDir)
		for limit := time.Now().Add(5 * time.Second); len(left) > 0 && time.Now().Before(limit); left = leftovers(t, files, runDir) {
			<-time.After(5 * time.Millisecond) // the end of a goroutine wakes nobody
		}
		if len(left) > 0 {
			t.Errorf("left behind:\n%s", strings.Join(left, "\n\n"))
		}
	})
}

var ours = regexp.MustCompile(`hotdeploy/(supervisor\.(\(\*(Supervisor|generation|output|eventLog|peerListener)\)|stream)|internal/(procs|probe|sockets)\.)`)

func leftovers(t testing.TB, files map[string]bool, runDir string) (left []string) {
	buf := make([]byte, 256<<10)
	for _, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if ours.MatchString(stack) && !strings.Contains(stack, "procs.init.func") { // who reaps orphans does so for the life of the program
			left = append(left, stack)
		}
	}
	for f := range openFiles(t) {
		if !files[f] {
			left = append(left, "open: "+f)
		}
	}
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, task := range tasks {
		if b, err := os.ReadFile(task); err == nil && len(b) > 0 {
			left = append(left, "child: "+string(b))
		}
	}
	entries, _ := os.ReadDir(runDir)
	for _, e := range entries {
		left = append(left, "file: "+e.Name())
	}
	return left
}

// openFiles are our descriptors, number and what it is.
func openFiles(t testing.TB) map[string]bool {
	t.Helper()
	open := map[string]bool{}
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if to, err := os.Readlink("/proc/self/fd/" + n.Name()); err == nil && !strings.HasPrefix(to, "anon_inode:[event") {
			open[n.Name()+" "+to] = true
		}
	}
	return open
}
