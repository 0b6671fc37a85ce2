package remote_test

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hotdeploy/hotdeploy/internal/config"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/internal/sshtest"
	"github.com/hotdeploy/hotdeploy/remote"
	"github.com/hotdeploy/hotdeploy/systemd"
)

// setupRig is a bare host: an SSH server, a PATH with programs that stand in for root's, and a place for the daemon.
type setupRig struct {
	s           *remote.Session
	bin, daemon string // folder of the stand-ins; where the daemon goes on the "host"
	lines       []string
}

func newSetupRig(t *testing.T, programs map[string]string) *setupRig {
	t.Helper()
	r := &setupRig{bin: t.TempDir()}
	for name, script := range programs {
		if err := os.WriteFile(filepath.Join(r.bin, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r.daemon = filepath.Join(t.TempDir(), "bin", "hotdeployd")
	remote.UseDaemonPath(t, r.daemon)
	opts := sshtest.Options{Env: []string{"PATH=" + r.bin + ":" + os.Getenv("PATH")}}
	s, err := remote.Dial(t.Context(), sshHost(t, startSSH(t, &opts), opts), remote.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	r.s = s
	return r
}

func (r *setupRig) setup(t *testing.T, daemon string) (remote.SetupResult, error) {
	t.Helper()
	r.lines = nil
	return remote.Setup(t.Context(), r.s, remote.SetupOptions{Name: "web-1", Daemon: daemon,
		Spec: systemd.SetupSpec{UnitSpec: systemd.UnitSpec{Service: "chat"}}, Say: func(l string) { r.lines = append(r.lines, l) }})
}

// hostPrograms make the test's machine one on which a user is root, or may become root through sudo.
func hostPrograms(root bool) map[string]string {
	p := map[string]string{"uname": "echo Linux x86_64", "chown": ":", "sudo": `[ "$1" = -n ] && [ "$2" = -- ] && shift 2 && exec "$@"`}
	if root {
		p["id"] = `[ "$1" = -u ] && echo 0 || echo root`
	} else {
		p["id"] = `[ "$1" = -u ] && echo 1000 || echo ann`
	}
	return p
}

// daemonFile is a program for that machine as far as its header goes. It does not run.
func daemonFile(t *testing.T, m elf.Machine, tail string) string {
	t.Helper()
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(m), Version: 1, Ehsize: 64, Phentsize: 56, Shentsize: 64}
	copy(h.Ident[:], elf.ELFMAG+string([]byte{byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1}))
	path := filepath.Join(t.TempDir(), "hotdeployd")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := binary.Write(f, binary.LittleEndian, h); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(f, tail)
	return path
}

func TestSetup_DaemonIsInstalledOnlyIfItDiffers(t *testing.T) {
	for _, root := range []bool{true, false} {
		t.Run(fmt.Sprintf("root=%v", root), func(t *testing.T) {
			programs := hostPrograms(root)
			programs["uname"] = "exec /bin/uname \"$@\""
			r := newSetupRig(t, programs)
			daemon := idleProgram(t, "one")
			if res, err := r.setup(t, daemon); err != nil || len(res.Changes) != 1 || !strings.HasPrefix(res.Changes[0], "installed") {
				t.Fatalf("first: %+v, %v", res, err)
			}
			sameFile(t, r.daemon, daemon)
			if res, _ := r.setup(t, daemon); len(res.Changes) != 0 {
				t.Fatalf("second: %+v, want no change", res)
			}
			other := idleProgram(t, "two")
			if res, _ := r.setup(t, other); len(res.Changes) != 1 || !strings.HasPrefix(res.Changes[0], "replaced") {
				t.Fatalf("third: %+v, want it replaced", res)
			}
			sameFile(t, r.daemon, other)
			broken := likeProgram(t, "/bin/false", "x")
			if res, err := r.setup(t, broken); err == nil || len(res.Changes) != 0 || !strings.Contains(err.Error(), "does not run on this host") {
				t.Fatalf("one that does not run: %+v, %v", res, err)
			}
			sameFile(t, r.daemon, other)
			if left, _ := filepath.Glob(filepath.Join(filepath.Dir(r.daemon), ".*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// idleProgram does nothing, whatever it is asked.
func idleProgram(t *testing.T, tail string) string { return likeProgram(t, "/bin/true", tail) }

func likeProgram(t *testing.T, path, tail string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return tempFile(t, append(b, tail...))
}

func sameFile(t *testing.T, got, want string) {
	t.Helper()
	a, err := os.ReadFile(got)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(want)
	if err != nil {
		t.Fatal(err)
	}
	if string(a) != string(b) {
		t.Fatalf("%s is not what %s is", got, want)
	}
	if info, err := os.Stat(got); err != nil || info.Mode().Perm() != 0o755 {
		t.Fatalf("mode %v, %v; want 0755", info.Mode(), err)
	}
}

// What the daemon would be asked is answered by sudo.
func TestSetup_TheHostsLinesAreTold(t *testing.T) {
	programs := hostPrograms(false)
	programs["sudo"] = `shift 2
case "$2" in setup) input=$(cat); case "$input" in
*'"deploy_group_members":["ann"]'*) echo created user chat; echo restart needed: the daemon was replaced; exit 0;; esac
echo "hotdeployd: error: unexpected $input" >&2; exit 1;; esac
exec "$@"`
	programs["uname"] = "exec /bin/uname \"$@\""
	r := newSetupRig(t, programs)
	res, err := r.setup(t, idleProgram(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Changes) != 2 || res.Changes[1] != "created user chat" || len(res.Restart) != 1 {
		t.Errorf("result %+v", res)
	}
	if len(r.lines) != 3 || !strings.HasPrefix(r.lines[0], "sending the daemon") {
		t.Errorf("lines %q", r.lines)
	}
}

// What the host says decides about what the operator types next.
func TestSetup_DaemonNotReplaced_SaysWhatNow(t *testing.T) {
	for name, tt := range map[string]struct{ says, state, hint string }{
		"too old": {"not replaced: it is too old\nrestart needed: it is too old", "takes over when the old one ends", "hotdeploy restart --daemon web-1"},
		"broken":  {"put x back\nnot replaced: the new daemon: exit status 7", "is as it was", "repeat  hotdeploy setup web-1"},
	} {
		t.Run(name, func(t *testing.T) {
			daemon := daemonFile(t, elf.EM_X86_64, "x")
			programs := hostPrograms(true)
			programs["sha256sum"] = "echo " + digestFile(t, daemon)
			r := newSetupRig(t, programs)
			remote.UseDaemonPath(t, program(t, "printf '%b\\n' '"+tt.says+"'; exit 1"))
			_, err := r.setup(t, daemon)
			f := remote.Explain("web-1", err)
			if !errors.Is(err, remote.ErrNotReplaced) || !strings.Contains(f.State, tt.state) || !strings.Contains(f.Hint, tt.hint) {
				t.Errorf("%v, state %q, hint %q", err, f.State, f.Hint)
			}
		})
	}
}

func TestSetup_NothingDiffers_SaysSo(t *testing.T) {
	daemon := daemonFile(t, elf.EM_X86_64, "x")
	programs := hostPrograms(true)
	programs["sha256sum"] = "echo " + digestFile(t, daemon) // of whatever file: the script in its place counts as the same
	r := newSetupRig(t, programs)
	remote.UseDaemonPath(t, program(t, "echo nothing to change"))
	res, err := r.setup(t, daemon)
	if err != nil || len(res.Changes) != 0 || strings.Join(r.lines, "|") != "nothing to change" {
		t.Fatalf("result %+v, lines %q, %v", res, r.lines, err)
	}
}

func digestFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return release.Digest(b)
}

func TestSetup_NeitherRootNorSudo_SaysHowElse(t *testing.T) {
	programs := hostPrograms(false)
	programs["sudo"] = "exit 1"
	_, err := newSetupRig(t, programs).setup(t, daemonFile(t, elf.EM_X86_64, ""))
	f := remote.Explain("web-1", err)
	if !errors.Is(err, remote.ErrNoRoot) || !strings.Contains(f.Hint, "hotdeploy setup root@") {
		t.Fatalf("error %v, hint %q", err, f.Hint)
	}
}

func TestSetup_NoDaemonForTheHost_NothingIsSent(t *testing.T) {
	for name, tt := range map[string]struct {
		uname, daemon string
		want          error
		words         string
	}{
		"another system":       {"FreeBSD amd64", "", remote.ErrNoPlatform, "FreeBSD"},
		"another architecture": {"Linux riscv64", "", remote.ErrNoPlatform, "riscv64"},
		"nothing built":        {"Linux aarch64", "", remote.ErrNoDaemon, "hotdeployd-linux-arm64"},
		"no such file":         {"Linux x86_64", "/nowhere", remote.ErrNoDaemon, "/nowhere"},
		"wrong architecture":   {"Linux x86_64", daemonFile(t, elf.EM_AARCH64, ""), remote.ErrNoDaemon, "EM_AARCH64"},
		"not a program":        {"Linux x86_64", tempFile(t, []byte("hello")), remote.ErrNoDaemon, "not a program"},
	} {
		t.Run(name, func(t *testing.T) {
			programs := hostPrograms(true)
			programs["uname"] = "echo " + tt.uname
			r := newSetupRig(t, programs)
			_, err := r.setup(t, tt.daemon)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.words) {
				t.Fatalf("error %v, want %v with %q", err, tt.want, tt.words)
			}
			if hint := remote.Explain("web-1", err).Hint; errors.Is(tt.want, remote.ErrNoDaemon) && !strings.Contains(hint, "make build") {
				t.Errorf("hint %q", hint)
			}
			if _, err := os.Stat(r.daemon); err == nil || len(r.lines) != 0 {
				t.Errorf("something was sent: %q", r.lines)
			}
		})
	}
}

func TestSpecFor_ListenersSayWhatTheUnitNeeds(t *testing.T) {
	const head = "service = \"chat\"\n[pack]\nfiles = [\"x\"]\n[run]\ncommand = [\"./x\"]\n"
	for name, tt := range map[string]struct {
		listen string
		wishes remote.SetupWishes
		want   string
	}{
		"high port": {`[[listen]]` + "\n" + `name = "http"` + "\n" + `network = "tcp"` + "\n" + `address = ":8080"`, remote.SetupWishes{}, "caps [] sockets 0 write []"},
		"low port":  {`[[listen]]` + "\n" + `name = "http"` + "\n" + `network = "tcp"` + "\n" + `address = ":443"`, remote.SetupWishes{}, "caps [CAP_NET_BIND_SERVICE] sockets 0 write []"},
		"low port, bound by systemd": {`[[listen]]` + "\n" + `name = "http"` + "\n" + `network = "tcp"` + "\n" + `address = ":443"`,
			remote.SetupWishes{SocketActivation: true}, "caps [] sockets 1 write []"},
		"unix socket elsewhere": {`[[listen]]` + "\n" + `name = "api"` + "\n" + `network = "unix"` + "\n" + `address = "/var/lib/proxy/chat.sock"`,
			remote.SetupWishes{}, "caps [] sockets 0 write [/var/lib/proxy]"},
		"unix socket in its own folder": {`[[listen]]` + "\n" + `name = "api"` + "\n" + `network = "unix"` + "\n" + `address = "/run/chat/app.sock"`,
			remote.SetupWishes{}, "caps [] sockets 0 write []"},
		"unix socket by its name": {`[[listen]]` + "\n" + `name = "api"` + "\n" + `network = "unix"` + "\n" + `address = "app.sock"`,
			remote.SetupWishes{}, "caps [] sockets 0 write []"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := config.Parse("hotdeploy.toml", []byte(head+tt.listen))
			if err != nil {
				t.Fatal(err)
			}
			spec, err := remote.SpecFor(p, tt.wishes)
			if err != nil {
				t.Fatal(err)
			}
			got := fmt.Sprintf("caps %v sockets %d write %v", spec.Capabilities, len(spec.Sockets), spec.ReadWritePaths)
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			spec.DaemonPath = remote.DaemonPath
			if err := spec.WithDefaults().Validate(); err != nil {
				t.Errorf("the host would refuse it: %v", err)
			}
		})
	}
}

func TestSpecFor_FlagsGoToTheUnitAndTheConfiguration(t *testing.T) {
	p, err := config.Parse("hotdeploy.toml", []byte("service = \"chat\"\n[pack]\nfiles = [\"x\"]\n[run]\ncommand = [\"./x\"]\n"))
	if err != nil {
		t.Fatal(err)
	}
	spec, err := remote.SpecFor(p, remote.SetupWishes{User: "talk", Root: "/srv/talk", DeployUsers: []string{"ann"}})
	if err != nil {
		t.Fatal(err)
	}
	d, err := config.ParseDaemon("chat.toml", []byte(spec.ConfigText))
	if err != nil {
		t.Fatal(err)
	}
	if d.Service != "chat" || d.User != "talk" || d.Root != "/srv/talk" || spec.User != "talk" || spec.DeployGroupMembers[0] != "ann" {
		t.Errorf("spec %+v, configuration %+v", spec, d)
	}
}
