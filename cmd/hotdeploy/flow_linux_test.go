package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/sshtest"
	"github.com/hotdeploy/hotdeploy/internal/version"
)

// world is an operator's machine and a host, both in one folder: a real daemon behind a real SSH connection, no root, no systemd.
type world struct {
	t   *testing.T
	dir string
	ssh *sshtest.Server
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if _, err := exec.LookPath("ssh"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("no ssh to read ssh's configuration")
		}
		t.Skip("##### SKIPPED: no ssh to read ssh's configuration #####")
	}
	dir, err := os.MkdirTemp("", "hd") // short: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: dir}
	t.Cleanup(w.remove)
	w.startSSH()
	w.startDaemon()
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) write(name, text string, mode os.FileMode) {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Dir(w.path(name)), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(w.path(name), []byte(text), mode); err != nil {
		w.t.Fatal(err)
	}
}

// remove removes releases, too, whose folders are read-only.
func (w *world) remove() {
	filepath.WalkDir(w.dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			os.Chmod(path, 0o700)
		}
		return nil
	})
	if err := os.RemoveAll(w.dir); err != nil {
		w.t.Error(err)
	}
}

func (w *world) startSSH() {
	w.t.Helper()
	key, err := sshtest.NewKey()
	if err != nil {
		w.t.Fatal(err)
	}
	if w.ssh, err = sshtest.Start(sshtest.Options{AuthorizedKeys: []ssh.PublicKey{key.Public()}}); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { w.ssh.Close() })
	pem, err := key.PEM("")
	if err != nil {
		w.t.Fatal(err)
	}
	w.write("id", string(pem), 0o600)
	w.write("known_hosts", w.ssh.KnownHosts(), 0o600)
	w.write("ssh_config", fmt.Sprintf("Host web-1 web-2\n\tHostName 127.0.0.1\n\tPort %d\n\tIdentityFile %s\n\tIdentitiesOnly yes\n\tUserKnownHostsFile %s\n",
		w.ssh.Port(), w.path("id"), w.path("known_hosts")), 0o600)
}

var buildDaemon = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "hotdeployd")
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "hotdeployd")
	if text, err := exec.Command("go", "build", "-o", out, "../hotdeployd").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, text)
	}
	return out, nil
})

func TestMain(m *testing.M) {
	status := m.Run()
	if daemon, err := buildDaemon(); err == nil {
		os.RemoveAll(filepath.Dir(daemon))
	}
	os.Exit(status)
}

func (w *world) startDaemon() {
	w.t.Helper()
	daemon, err := buildDaemon()
	if err != nil {
		w.t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(daemon, "run", "--service", "chat", "--root", w.path("srv"), "--run-dir", w.path("run"))
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if w.t.Failed() {
			w.t.Logf("the daemon's log:\n%s", log.String())
		}
	})
	limit := time.Now().Add(30 * time.Second)
	for { // without systemd nothing tells when the socket is there
		c, err := net.Dial("unix", w.path("run/control.sock"))
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(limit) {
			w.t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// project writes a project whose app is a shell script; hosts are those of its only target.
func (w *world) project(script, soak string, hosts ...string) {
	w.t.Helper()
	quoted := make([]string, len(hosts))
	for i, h := range hosts {
		quoted[i] = strconv.Quote(h)
	}
	w.write("app/run.sh", "#!/bin/sh\n"+script+"\n", 0o755)
	w.write("app/hotdeploy.toml", fmt.Sprintf(`service = "chat"
[pack]
files = ["run.sh"]
[run]
command = ["./run.sh"]
stop_timeout = "1s"
[ready]
check = "delay"
delay = "10ms"
[soak]
duration = %q
[targets.production]
hosts = [%s]
socket = %q
`, soak, strings.Join(quoted, ", "), w.path("run/control.sock")), 0o644)
}

func (w *world) run(args ...string) output {
	w.t.Helper()
	got := command(w.t, append([]string{"-c", w.path("app/hotdeploy.toml"), "--ssh-config", w.path("ssh_config"), "--store", w.path("store")}, args...)...)
	w.t.Logf("$ hotdeploy %s   [%d]\n%s%s", strings.Join(args, " "), got.status, got.stderr, got.stdout)
	return got
}

// want runs a verb and fails the test unless it ends with that status and says those words.
func (w *world) want(status int, args []string, words ...string) output {
	w.t.Helper()
	got := w.run(args...)
	if got.status != status {
		w.t.Fatalf("hotdeploy %v: exit status %d, want %d", args, got.status, status)
	}
	for _, word := range words {
		if !strings.Contains(got.stdout+got.stderr, word) {
			w.t.Errorf("hotdeploy %v does not say %q", args, word)
		}
	}
	return got
}

// offers checks what a shell is told to complete words with.
func (w *world) offers(want string, words ...string) {
	w.t.Helper()
	args := append([]string{cobra.ShellCompRequestCmd, words[0], "-c", w.path("app/hotdeploy.toml"), "--ssh-config", w.path("ssh_config")}, words[1:]...)
	got := command(w.t, args...)
	if list, _, ok := strings.Cut(got.stdout, ":"); !ok || list != want { // a line with the directive follows
		w.t.Errorf("%q: offered %q, want %q (%s)", words, got.stdout, want, got.stderr)
	}
}

func fields(line string) []string { return strings.Fields(line) }

func TestVerbs_OneReleaseAfterTheOther(t *testing.T) {
	w := newWorld(t)
	w.project("echo one is up; exec sleep 1000", "20ms", "web-1")
	w.want(0, fields("status"), "no release yet")
	w.want(0, fields("releases"), "no release yet")
	w.want(3, fields("rollback"), "no release to go to", "hotdeploy: state: nothing is serving")
	w.want(0, fields("push --version 1"), "pushing chat 1", "verify", "web-1: 1 is serving (generation 1)")
	w.want(0, fields("push --version 1"), "1 is already serving")

	w.project("echo two is up; exec sleep 1000", "20ms", "web-1")
	w.want(3, fields("push --version 1"), "other content", "release 1 is serving")
	w.want(0, fields("push --version 2 web-1"), "web-1: 2 is serving (generation 2)")
	w.want(0, fields("releases"), "RELEASE", "committed", "previous")
	w.offers("2\tcommitted\n1\tprevious\n", "rollback", "web-1", "--to", "")
	w.offers("2\tcommitted\n1\tprevious\n", "logs", "--release", "")
	w.offers("", "logs", "nowhere.invalid", "--release", "")
	w.want(0, fields("rollback"), "1 is serving (generation 3)")
	w.want(0, fields("rollback --to 2"), "2 is serving (generation 4)")
	w.want(3, fields("rollback --to 9"), "no release 9", "hotdeploy releases web-1")
	w.want(0, fields("restart"), "2 is serving (generation 5)")
	w.want(0, fields("logs --release 2"), "two is up")
	w.want(3, fields("retire web-1 77"), "77")
	w.want(0, fields("history"), "rollback", "push", "restart", "done")
	var told answer
	if got := w.want(0, fields("history -n 2 --json")); json.Unmarshal([]byte(got.stdout), &told) != nil || len(told.Hosts[0].History) != 2 ||
		told.Hosts[0].History[0].Kind != api.KindRestart {
		t.Errorf("history --json: %s", got.stdout)
	}
	w.want(3, fields("history -n 0"), "from 1 to 1000")
	w.want(0, fields("stop"), "stopped")
	w.want(0, fields("start"), "serving 2")
	w.want(0, fields("version web-1"), "hotdeploy "+version.String(), "hotdeployd "+version.String())

	var st api.Status
	if got := w.want(0, fields("status --json")); json.Unmarshal([]byte(got.stdout), &st) != nil || st.Committed.Version != "2" {
		t.Errorf("status --json: %s", got.stdout)
	}
}

func TestPush_FailsOnTheHost_SaysWhyInTheAnswerToo(t *testing.T) {
	w := newWorld(t)
	w.project("exec sleep 1000", "20ms", "web-1")
	w.want(0, fields("push --version 1"))
	w.project("echo no database; exit 3", "20ms", "web-1")
	toml, err := os.ReadFile(w.path("app/hotdeploy.toml"))
	if err != nil {
		t.Fatal(err)
	}
	// it must have died when it would count as ready, however busy this machine is
	w.write("app/hotdeploy.toml", strings.Replace(string(toml), `delay = "10ms"`, `delay = "20s"`, 1), 0o644)
	got := w.want(3, fields("push --version 2 --json"), "no database")
	var a answer
	if err := json.Unmarshal([]byte(got.stdout), &a); err != nil {
		t.Fatal(err)
	}
	h := a.Hosts[0]
	if a.Outcome != api.NothingChanged || h.Error == nil || h.Error.Code != api.ErrStart.Code || len(h.Error.Output) != 1 || h.Upgrade == nil {
		t.Errorf("answer %s", got.stdout)
	}
	for _, line := range []string{"hotdeploy: error: web-1: ", "hotdeploy: state: release 1 is serving", "hotdeploy: hint:  "} {
		if strings.Count(got.stderr, line) != 1 {
			t.Errorf("%q is not there once:\n%s", line, got.stderr)
		}
	}
	w.project("until test -e "+w.path("die")+"; do sleep 0.05; done", "60s", "web-1")
	got = w.until("ready ", func() { w.write("die", "", 0o644) }, fields("push --version 3")...)
	if got.status != 4 || !strings.Contains(got.stderr, "in the soak") || !strings.Contains(got.stderr, "release 1 is serving") {
		t.Errorf("push: %+v", got)
	}
	w.want(0, fields("status"), "serving 1", "rolled back")
}

func TestPush_PackedRelease_WithoutTheProject(t *testing.T) {
	w := newWorld(t)
	w.project("exec sleep 1000", "20ms", "web-1")
	dir := w.path("packed")
	w.want(0, fields("pack --version 5 -o "+dir), dir)
	w.write("app/run.sh", "changed since", 0o755)
	w.want(0, fields("push --release "+dir), "5 is serving")
}

func TestSeveralHosts_TheSecondFails_SomeHostsOnly(t *testing.T) {
	w := newWorld(t)
	w.project("exec sleep 1000", "20ms", "web-1", "127.0.0.1:1", "web-2")
	got := w.want(6, fields("push --version 1 --json production"), "127.0.0.1:1", "unreachable", "done before: web-1", "not begun: web-2")
	var a answer
	if err := json.Unmarshal([]byte(got.stdout), &a); err != nil || a.Outcome != api.SomeHosts || len(a.Hosts) != 3 || a.Hosts[1].NotBegun || !a.Hosts[2].NotBegun {
		t.Errorf("answer %s (%v)", got.stdout, err)
	}
	w.want(6, fields("status"), "web-1: chat: serving 1", "web-2: chat: serving 1", "127.0.0.1:1 is unreachable")
	w.project("exec sleep 1000", "20ms", "127.0.0.1:1", "web-1")
	w.want(3, fields("push --version 2"), "unreachable")
}

func TestPush_ConflictingVersion_AndUnknownService(t *testing.T) {
	w := newWorld(t)
	w.project("exec sleep 1000", "20ms", "web-1")
	w.want(3, fields("push --version 1 --service other"), "for the service other, this is chat", "nothing is serving")
	w.want(2, fields("status nowhere-at-all --service ../x"), "--service")
}

func TestPush_BrokenProject_TellsWhatGoesOnServing(t *testing.T) {
	w := newWorld(t)
	w.project("exec sleep 1000", "20ms", "web-1")
	w.want(0, fields("push --version 1"))
	if err := os.Remove(w.path("app/run.sh")); err != nil {
		t.Fatal(err)
	}
	w.want(3, fields("push --version 2"), "run.sh", "hotdeploy: state: release 1 is serving", "hotdeploy: hint: ")
}

// An interrupt is a ^C: the signal goes to the process that runs the test, which is the command.
func TestCtrlC_InTheSoak_IsTakenBack_AndAWatchEndsWell(t *testing.T) {
	w := newWorld(t)
	w.project("exec sleep 1000", "20ms", "web-1")
	w.want(0, fields("push --version 1"))
	w.project("exec sleep 1001", "60s", "web-1")
	interrupt := func() { syscall.Kill(os.Getpid(), syscall.SIGINT) }

	got := w.until("ready ", interrupt, fields("push --version 2")...)
	if got.status != 4 || !strings.Contains(got.stderr, "cancelled in phase soak") || !strings.Contains(got.stderr, "release 1 is serving") {
		t.Errorf("push: %+v", got)
	}
	w.want(3, fields("cancel"), "no upgrade is in flight", "release 1 is serving")
	cancelled := make(chan output, 1)
	got = w.until("ready ", func() { go func() { cancelled <- w.run("cancel", "web-1") }() }, fields("push --version 2")...)
	if c := <-cancelled; got.status != 4 || c.status != 0 || !strings.Contains(c.stdout, "is cancelled, in phase soak; release 1 is serving") {
		t.Errorf("push: %+v; cancel: %+v", got, c)
	}
	if got := w.until("GENERATION", interrupt, fields("status --watch")...); got.status != 0 || got.stderr != "" {
		t.Errorf("watch: %+v", got)
	}
	var times int
	again := func() { // at each line about a generation: the first one loses its line
		if times++; times == 1 {
			w.ssh.Drop()
		} else {
			interrupt()
		}
	}
	if got := w.each("GENERATION", again, fields("status --watch")...); got.status != 0 || strings.Count(got.stderr, "connecting again") != 1 {
		t.Errorf("watch over a line that is lost: %+v", got)
	}
	w.project("while :; do echo tick; sleep 0.05; done", "20ms", "web-1")
	w.want(0, fields("push --version 3"))
	if got := w.until("tick", interrupt, fields("logs -f")...); got.status != 0 || got.stderr != "" {
		t.Errorf("logs -f: %+v", got)
	}
}

// until runs a verb and calls do once it has said the word.
func (w *world) until(word string, do func(), args ...string) output {
	w.t.Helper()
	var out, errs bytes.Buffer
	seen := &trigger{word: word, do: do}
	args = append([]string{"-c", w.path("app/hotdeploy.toml"), "--ssh-config", w.path("ssh_config"), "--store", w.path("store")}, args...)
	status := run(w.t.Context(), args, strings.NewReader(""), io.MultiWriter(&out, seen), io.MultiWriter(&errs, seen))
	return output{status, out.String(), errs.String()}
}

// each is until, but do is called when the word comes first in a while, and again after the next pause.
func (w *world) each(word string, do func(), args ...string) output {
	w.t.Helper()
	var out, errs bytes.Buffer
	seen := &trigger{word: word, do: do, again: "connecting again"}
	args = append([]string{"-c", w.path("app/hotdeploy.toml"), "--ssh-config", w.path("ssh_config"), "--store", w.path("store")}, args...)
	status := run(w.t.Context(), args, strings.NewReader(""), io.MultiWriter(&out, seen), io.MultiWriter(&errs, seen))
	return output{status, out.String(), errs.String()}
}

// trigger calls do when word has been written, and, after the word again has, once more.
type trigger struct {
	mu    sync.Mutex // protects text and done
	text  string
	done  bool
	word  string
	again string
	do    func()
}

func (t *trigger) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text += string(p)
	if t.done && t.again != "" && strings.Contains(t.text, t.again) {
		t.text, t.done = "", false
	}
	if !t.done && strings.Contains(t.text, t.word) {
		t.done, t.text = true, ""
		t.do()
	}
	return len(p), nil
}
