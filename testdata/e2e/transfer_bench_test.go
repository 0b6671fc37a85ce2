//go:build bench

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/testdata/lab"
)

// The line of the comparison.
const (
	benchRate  = "10mbit"
	benchDelay = 25 * time.Millisecond // each way
)

// benchLimit is for each of the others: scp and sftp take minutes where there are many files. BENCH_LIMIT sets another.
var benchLimit = time.Minute

// cost is what one transfer took.
type cost struct {
	bytes       int64         // over the line, both ways
	took        time.Duration // until all is there: for us until the host has the release
	serving     time.Duration // until the new release serves; the others do not do that
	cpu         time.Duration // of the program here and its children
	here, there int64         // peak memory of the programs on both sides, kB; of ssh on this side too, of sshd on the other not
	over        bool          // it was ended at the limit
}

// input is what a release was and what it has become. Both fill the project's folder data.
type input struct {
	name     string
	old, new func(t *testing.T, dir string)
}

// TestBenchTransfer prints what a push costs beside what other programs need to bring the same files there. Ours is timed from the command
// to the moment when the host says that the release is there: packing is part of it, and so is checking every digest there.
// What comes after it, the upgrade, the others do not do. BENCH_MB is the size of the large release; BENCH_TRACE shows what the command says,
// and when.
func TestBenchTransfer(t *testing.T) {
	if s := os.Getenv("BENCH_LIMIT"); s != "" {
		var err error
		benchLimit, err = time.ParseDuration(s)
		must(t, err)
	}
	mb := 200
	if s := os.Getenv("BENCH_MB"); s != "" {
		mb, _ = strconv.Atoi(s)
	}
	was, is := rebuiltProgram(t)
	copied := func(from string) func(*testing.T, string) {
		return func(t *testing.T, dir string) { copyTo(t, from, filepath.Join(dir, "program")) }
	}
	nothing := func(*testing.T, string) {}
	for _, in := range []input{
		{"a Go program with one function more", copied(was), copied(is)},
		{"2,000 small files, 20 of them changed", smallFiles(2000, 0), smallFiles(2000, 20)},
		{fmt.Sprintf("%d MB, a file grew at its start", mb), grown(mb, ""), grown(mb, "a new first line\n")},
		{"a tree like Node's, 5% changed", tree(0), tree(20)},
		{"nothing changed", tree(0), nothing},
		{"the first time", nil, tree(0)},
	} {
		t.Run(in.name, func(t *testing.T) { compare(t, in) })
	}
}

func compare(t *testing.T, in input) {
	s := newService(t, common())
	s.base.Files = `["bin/**", "data/**"]`
	s.base.Soak = "1ms"
	data := filepath.Join(s.dir, "data")
	must(t, os.MkdirAll(data, 0o755))
	if in.old != nil {
		in.old(t, data)
		makeOld(t, data)
		s.push("1").want(0)
	}
	s.run("rm -rf /tmp/bench; mkdir -p /tmp/bench")
	programs := map[string][]string{
		"scp":      {"scp", "-q", "-r", "-F", s.sshConfig, "bin", "data", s.vm.Name + ":/tmp/bench/scp"},
		"scp -C":   {"scp", "-q", "-C", "-r", "-F", s.sshConfig, "bin", "data", s.vm.Name + ":/tmp/bench/scpc"},
		"sftp -r":  {"sh", "-c", "printf 'put -r bin\nput -r data\n' | sftp -q -b - -F '" + s.sshConfig + "' " + s.vm.Name + ":/tmp/bench/sftp"},
		"rsync -z": {"rsync", "-rlptz", "--delete", "-e", "ssh -F " + s.sshConfig, "bin", "data", s.vm.Name + ":/tmp/bench/rsync/"},
	}
	order := []string{"rsync -z", "scp -C", "scp", "sftp -r"}
	s.run("mkdir /tmp/bench/scp /tmp/bench/scpc /tmp/bench/sftp /tmp/bench/rsync")
	if in.old != nil { // what is there already
		s.copy("bin", "/tmp/bench/rsync")
		s.copy("data", "/tmp/bench/rsync")
	}
	in.new(t, data)
	version := "2"
	if in.name == "nothing changed" {
		version = "1"
	}
	must(t, s.vm.Link(t.Context(), lab.Link{Delay: benchDelay}))
	must(t, s.vm.Rate(t.Context(), benchRate))
	t.Cleanup(func() {
		must(t, s.vm.Rate(context.Background(), "off"))
		must(t, s.vm.Link(context.Background(), lab.Link{}))
	})
	s.write()
	costs := map[string]cost{"hotdeploy": s.ours(version)}
	for _, name := range order {
		costs[name] = s.measure(programs[name], nil, benchLimit)
	}
	printCosts(t, append([]string{"hotdeploy"}, order...), costs)
}

// ours pushes, and looks at the daemon's memory as well.
func (s *service) ours(version string) cost {
	s.run("echo 5 >/proc/$(systemctl show -p MainPID --value NAME)/clear_refs")
	argv := []string{program(), "--ssh-config", s.sshConfig, "-v", "push", "--version", version, s.host}
	c := s.measure(argv, []string{"HOME=" + private}, patience)
	status := s.run("grep VmHWM /proc/$(systemctl show -p MainPID --value NAME)/status")
	c.there, _ = strconv.ParseInt(strings.Fields(status)[1], 10, 64)
	return c
}

// stopwatch notes when a program's output has a line that says that all is there.
type stopwatch struct {
	began time.Time
	said  strings.Builder
	there time.Duration
}

func (w *stopwatch) Write(b []byte) (int, error) {
	w.said.Write(b)
	if os.Getenv("BENCH_TRACE") != "" {
		fmt.Printf("%6.3f %s", time.Since(w.began).Seconds(), b)
	}
	if at := time.Since(w.began); w.there == 0 && strings.Contains(w.said.String(), ": uploaded ") {
		w.there = at
	}
	return len(b), nil
}

// measure runs a program in the project and counts what goes over the machine's line meanwhile.
func (s *service) measure(argv, environ []string, limit time.Duration) (c cost) {
	s.t.Helper()
	before := s.traffic()
	namespace := strings.TrimSpace(s.run("readlink /proc/self/ns/pid"))
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	defer cancel()
	cmd := world.Command(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = s.dir, append([]string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/root", "LANG=C.UTF-8"}, environ...)
	// One that is ended must not go on on the line of the next: it has children.
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	watch := &stopwatch{began: time.Now()}
	cmd.Stderr = watch
	must(s.t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	tick := time.NewTicker(20 * time.Millisecond) // how else would one learn another process's peak
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			c.took = time.Since(watch.began)
			if c.over = ctx.Err() != nil; err != nil && !c.over {
				s.t.Fatalf("%v: %v\n%s", argv, err, watch.said.String())
			}
			if c.serving = c.took; watch.there > 0 {
				c.took = watch.there
			}
			c.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
			c.bytes = s.traffic() - before
			return c
		case <-tick.C:
			c.here = max(c.here, peakOfTree(cmd.Process.Pid))
			c.there = max(c.there, peakThere(namespace))
		}
	}
}

// peakOfTree is the sum of the peaks of a process and those below it, in kB.
func peakOfTree(pid int) int64 {
	sum := peakOf(strconv.Itoa(pid))
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, name := range tasks {
		b, _ := os.ReadFile(name)
		for _, child := range strings.Fields(string(b)) {
			n, _ := strconv.Atoi(child)
			sum += peakOfTree(n)
		}
	}
	return sum
}

// peakThere is the same of the other side's processes that serve a transfer.
func peakThere(namespace string) (sum int64) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		name, _ := os.ReadFile(dir + "/comm")
		switch strings.TrimSpace(string(name)) {
		case "rsync", "scp", "sftp-server":
			if ns, _ := os.Readlink(dir + "/ns/pid"); ns == namespace {
				sum += peakOf(filepath.Base(dir))
			}
		}
	}
	return sum
}

func peakOf(pid string) int64 {
	b, err := os.ReadFile("/proc/" + pid + "/status")
	_, after, found := strings.Cut(string(b), "VmHWM:")
	if err != nil || !found {
		return 0
	}
	kB, _ := strconv.ParseInt(strings.Fields(after)[0], 10, 64)
	return kB
}

// traffic is what has gone over the machine's line so far, with all headers.
func (s *service) traffic() (n int64) {
	for _, word := range strings.Fields(s.run("cat /sys/class/net/[!l]*/statistics/[rt]x_bytes")) {
		b, err := strconv.ParseInt(word, 10, 64)
		must(s.t, err)
		n += b
	}
	return n
}

func (s *service) copy(what, to string) {
	s.t.Helper()
	cmd := world.Command(s.t.Context(), "rsync", "-rlpt", "-e", "ssh -F "+s.sshConfig, what, s.vm.Name+":"+to+"/")
	cmd.Dir = s.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("copy %s: %v: %s", what, err, out)
	}
}

// makeOld gives files a time that no new one has: rsync passes by what has the same size and second.
func makeOld(t *testing.T, dir string) {
	before := time.Now().Add(-time.Hour)
	must(t, filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			err = os.Chtimes(path, before, before)
		}
		return err
	}))
}

func printCosts(t *testing.T, order []string, costs map[string]cost) {
	var best cost
	for _, name := range order[1:] {
		c := costs[name]
		if c.over {
			continue
		}
		if best.bytes == 0 || c.bytes < best.bytes {
			best.bytes = c.bytes
		}
		if best.took == 0 || c.took < best.took {
			best.took = c.took
		}
	}
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Printf("\n%s (%s, %s round trip; load %.4s)\n%-10s %13s %9s %7s %9s %10s   %s\n", t.Name(), benchRate, 2*benchDelay, load,
		"", "bytes", "seconds", "cpu", "memory", "host's", "of the best of the others")
	mebi := func(kB int64) string { return fmt.Sprintf("%.1f MiB", float64(kB)/1024) }
	for _, name := range order {
		c := costs[name]
		took, ratio := fmt.Sprintf("%.2f", c.took.Seconds()), fmt.Sprintf("%.1f%% of the bytes, %.1f%% of the time",
			100*float64(c.bytes)/float64(best.bytes), 100*float64(c.took)/float64(best.took))
		if c.over { // what it would have taken in the end is not known
			took = fmt.Sprintf("> %.0f", benchLimit.Seconds())
			ratio = fmt.Sprintf("more than %.1f%% of the bytes and %.1f%% of the time: ended there", 100*float64(c.bytes)/float64(best.bytes), 100*float64(c.took)/float64(best.took))
		}
		fmt.Printf("%-10s %13d %9s %7.2f %9s %10s   %s\n", name, c.bytes, took, c.cpu.Seconds(), mebi(c.here), mebi(c.there), ratio)
	}
	fmt.Printf("hotdeploy: timed until the host has the checked release, packing included; it served after %.2f s\n", costs["hotdeploy"].serving.Seconds())
	rsync := costs["rsync -z"]
	text, _ := json.Marshal(map[string]any{"bytes": costs["hotdeploy"].bytes, "of_rsync_bytes": float64(costs["hotdeploy"].bytes) / float64(rsync.bytes),
		"of_rsync_time": costs["hotdeploy"].took.Seconds() / rsync.took.Seconds()})
	t.Logf("%s", text)
}

// rebuiltProgram builds a real program, and again with a function more in a package that much is linked behind.
func rebuiltProgram(t *testing.T) (was, is string) {
	t.Helper()
	dir := t.TempDir()
	was, is = filepath.Join(dir, "was"), filepath.Join(dir, "is")
	root, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	must(t, err)
	file := filepath.Join(strings.TrimSpace(string(root)), "src", "path", "path.go")
	text, err := os.ReadFile(file)
	must(t, err)
	changed := filepath.Join(dir, "path.go")
	must(t, os.WriteFile(changed, append(text, `
var oneMore = addOne([]string{"one more function", "was added here"})

//go:noinline
func addOne(names []string) (total int) {
	for _, n := range names {
		for i, c := range n {
			if c == 'x' {
				total += i * len(n[i:])
			}
		}
	}
	return total
}
`...), 0o644))
	overlay, _ := json.Marshal(map[string]any{"Replace": map[string]string{file: changed}})
	must(t, os.WriteFile(filepath.Join(dir, "overlay"), overlay, 0o644))
	build := func(out string, args ...string) {
		args = append(append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", out}, args...), "honnef.co/go/tools/cmd/staticcheck")
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir, cmd.Env = source, append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build a program: %v: %s", err, text)
		}
	}
	build(was)
	build(is, "-overlay", filepath.Join(dir, "overlay"))
	return was, is
}

func copyTo(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(to, b, 0o755))
}

// prose is text that compresses about as source code does.
func prose(r *rand.Rand, n int) []byte {
	var b strings.Builder
	for b.Len() < n {
		fmt.Fprintf(&b, "%s(%d, %q);\n", []string{"return call", "const value = make", "if (!done) throw error", "export function run"}[r.IntN(4)], r.IntN(1e6), fmt.Sprint(r.Uint32()))
	}
	return []byte(b.String()[:n])
}

func smallFiles(n, changed int) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		r := rand.New(rand.NewPCG(1, 1))
		for i := range n {
			b := prose(r, 200+r.IntN(4000))
			if changed > 0 && i%(n/changed) == 0 {
				b = append(b, "// changed\n"...)
			}
			to := filepath.Join(dir, fmt.Sprint("part", i%37), fmt.Sprintf("file%d.js", i))
			must(t, os.MkdirAll(filepath.Dir(to), 0o755))
			must(t, os.WriteFile(to, b, 0o644))
		}
	}
}

func grown(mb int, first string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		r := rand.New(rand.NewPCG(2, 2))
		for i := range 4 {
			b := prose(r, mb<<20/4)
			if i == 1 {
				b = append([]byte(first), b...)
			}
			must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("large%d.txt", i)), b, 0o644))
		}
	}
}

// tree is many small files and a few large, of which one in every so many is changed.
func tree(every int) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		r := rand.New(rand.NewPCG(3, 3))
		for i := range 1200 {
			size := 500 + r.IntN(8000)
			if i%400 == 0 {
				size = 2 << 20
			}
			b := prose(r, size)
			if every > 0 && i%every == 0 {
				copy(b[size/2:], "/* changed */")
			}
			to := filepath.Join(dir, "node_modules", fmt.Sprint("package", i%60), "lib", fmt.Sprintf("module%d.js", i))
			must(t, os.MkdirAll(filepath.Dir(to), 0o755))
			must(t, os.WriteFile(to, b, 0o644))
		}
	}
}
