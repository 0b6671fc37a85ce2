//go:build linux

package systemd

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
	"golang.org/x/sys/unix"
)

// probeResult is how something that a supervisor or an app does went inside
// the sandbox of a real unit.
type probeResult struct {
	Name, Want, Error string
}

func (r probeResult) verdict() string {
	if r.Error == "" {
		return "works"
	}
	return "denied"
}

var probes = []struct {
	name, want string
	try        func(service string) error
}{
	// what the supervisor does
	{"own cgroup for a child", "works", probeCgroup},
	{"pidfd of a child", "works", probePidfd},
	{"/proc of a child", "works", probeProc},
	{"count connections", "works", probeSockDiag},
	{"journal stream", "works", probeJournal},
	{"own stderr is the journal", "works", func(string) error { return failUnless(OnJournal()) }},
	{"listen", "works", probeListen},
	{"write below the root", "works", func(s string) error { return touch("/srv/" + s + "/shared/x") }},
	{"write to an extra path", "works", func(s string) error { return touch("/var/lib/extra-" + s + "/x") }},
	{"write to the runtime directory", "works", func(s string) error { return touch("/run/" + s + "/x") }},
	{"write to /tmp", "works", func(string) error { return touch("/tmp/x") }},
	{"set the soft limit of files", "works", probeRlimit},

	// what apps do
	{"chown to oneself", "works", func(s string) error { return os.Chown("/srv/"+s+"/shared/x", os.Getuid(), os.Getgid()) }},
	{"size of the machine", "works", probeProcFiles},
	{"python app", "works", func(string) error { return script("python3", "-c", pythonApp) }},
	{"node app", "works", func(string) error { return script("node", "-e", nodeApp) }},
	{"java, where there is one", "works", probeJava},
	{"shell", "works", func(string) error { return script("/bin/sh", "-c", "echo $((1+1)) | grep -q 2 && date >/dev/null") }},

	// what nobody does
	{"bind port 82", "denied", func(string) error { return listenOnce("tcp", "127.0.0.1:82") }},
	{"write to /etc", "denied", func(string) error { return touch("/etc/x") }},
	{"write to another cgroup", "denied", func(string) error { return os.Mkdir("/sys/fs/cgroup/system.slice/x", 0o755) }},
	{"look at PID 1", "denied", func(string) error { _, err := os.Stat("/proc/1/status"); return err }},
	{"look into homes", "denied", func(string) error { _, err := os.ReadDir("/home/deploy"); return err }},
	{"become another user", "denied", func(string) error { return unix.Setresuid(1, 1, 1) }},
	{"set-uid file", "denied", func(s string) error { return os.Chmod("/srv/"+s+"/shared/x", 0o4755|os.ModeSetuid) }},
	{"packet socket", "denied", probePacketSocket},
	{"mount", "denied", func(string) error { return unix.Mount("none", "/tmp", "tmpfs", 0, "") }},
	{"trace another process", "denied", func(string) error { return unix.PtraceAttach(os.Getppid()) }},
}

func init() {
	roles["probe"] = func() error { return beService("probed", probeAll) }
	roles["greeter"] = func() error { return beService("greeting", greet) }
	roles["call"] = call
}

func probeAll(context.Context) error {
	service := strings.TrimSuffix(filepath.Base(os.Args[3]), ".toml")
	var results []probeResult
	for _, p := range probes {
		r := probeResult{Name: p.name, Want: p.want}
		if err := p.try(service); err != nil {
			r.Error = err.Error()
		}
		results = append(results, r)
	}
	text, err := json.MarshalIndent(results, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile("/srv/"+service+"/state/probe.json", text, 0o600)
}

func failUnless(ok bool) error {
	if !ok {
		return errors.New("no")
	}
	return nil
}

func touch(path string) error { return os.WriteFile(path, []byte("x"), 0o640) }

// script has half a minute, below the time that systemd waits for READY.
func script(name string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// sleeper is a child that lives until its input ends.
func sleeper(attr *unix.SysProcAttr) (cmd *exec.Cmd, end func() error, err error) {
	cmd = exec.Command("cat")
	cmd.SysProcAttr = attr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	return cmd, func() error { in.Close(); return cmd.Wait() }, cmd.Start()
}

func probeCgroup(string) error {
	lines, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	_, own, _ := strings.Cut(string(lines), "0::")
	dir := filepath.Join("/sys/fs/cgroup", strings.TrimSpace(own), "generation-1")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	cmd, end, err := sleeper(&unix.SysProcAttr{UseCgroupFD: true, CgroupFD: fd})
	if err != nil {
		return fmt.Errorf("clone into %s: %w", dir, err)
	}
	procs, err := os.ReadFile(dir + "/cgroup.procs")
	if err != nil || strings.TrimSpace(string(procs)) != fmt.Sprint(cmd.Process.Pid) {
		return fmt.Errorf("processes %q, %w", procs, err)
	}
	if err := os.WriteFile(dir+"/cgroup.kill", []byte("1"), 0); err != nil {
		return err
	}
	end()
	return unix.Rmdir(dir)
}

func probePidfd(string) error {
	cmd, end, err := sleeper(nil)
	if err != nil {
		return err
	}
	defer end()
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		return fmt.Errorf("pidfd_open: %w", err)
	}
	defer unix.Close(fd)
	taken, err := unix.PidfdGetfd(fd, 1, 0)
	if err != nil {
		return fmt.Errorf("pidfd_getfd: %w", err)
	}
	unix.Close(taken)
	return os.NewSyscallError("pidfd_send_signal", unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0))
}

func probeProc(string) error {
	cmd, end, err := sleeper(nil)
	if err != nil {
		return err
	}
	defer end()
	dir := fmt.Sprintf("/proc/%d/", cmd.Process.Pid)
	if _, err := os.Readlink(dir + "fd/0"); err != nil {
		return err
	}
	_, err = os.ReadFile(dir + "smaps_rollup")
	return err
}

// probeSockDiag asks the kernel for all TCP sockets, as a count of connections does.
func probeSockDiag(string) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const size = unix.SizeofNlMsghdr + 56 // struct inet_diag_req_v2
	req := make([]byte, size)
	binary.NativeEndian.PutUint32(req[0:], size)
	binary.NativeEndian.PutUint16(req[4:], 20) // SOCK_DIAG_BY_FAMILY
	binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	req[16], req[17] = unix.AF_INET, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(req[20:], 0xffffffff)
	if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 1<<16)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return err
	}
	if kind := binary.NativeEndian.Uint16(answer[4:]); n < unix.SizeofNlMsghdr || kind == unix.NLMSG_ERROR {
		return fmt.Errorf("answer of kind %d", kind)
	}
	return nil
}

// probeJournal leaves a child behind, since journald looks at the writer when
// it reads the line.
func probeJournal(service string) error {
	stream, err := OpenJournalStream(service+"/1.2.3", journal.PriInfo)
	if err != nil {
		return err
	}
	defer stream.Close()
	cmd := exec.Command("/bin/sh", "-c", "echo hello; echo '<3>oops' >&2; exec cat")
	cmd.Stdout, cmd.Stderr = stream, stream
	if _, err := cmd.StdinPipe(); err != nil {
		return err
	}
	return cmd.Start()
}

func probeListen(service string) error {
	return errors.Join(
		listenOnce("tcp", ":0"), listenOnce("tcp4", "127.0.0.1:0"), listenOnce("unix", "/run/"+service+"/probe.sock"),
		func() error {
			c, err := net.ListenPacket("udp", ":0")
			if err == nil {
				c.Close()
			}
			return err
		}())
}

func listenOnce(network, address string) error {
	ln, err := net.Listen(network, address)
	if err == nil {
		ln.Close()
	}
	return err
}

func probeRlimit(string) error {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return err
	}
	lim.Cur--
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &lim)
}

func probeProcFiles(string) error {
	for _, path := range []string{"/proc/meminfo", "/proc/cpuinfo", "/proc/stat", "/proc/sys/net/core/somaxconn", "/sys/fs/cgroup/cgroup.controllers"} {
		if _, err := os.ReadFile(path); err != nil {
			return err
		}
	}
	return nil
}

func probeJava(string) error {
	if _, err := exec.LookPath("java"); err != nil {
		return nil
	}
	return script("java", "-Xmx64m", "-version")
}

func probePacketSocket(string) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// pythonApp and nodeApp touch what real ones live on: sockets, threads,
// processes, compiled code, randomness, temporary files.
const pythonApp = `
import asyncio, multiprocessing, os, socket, sqlite3, ssl, subprocess, tempfile, threading, ctypes, hashlib
ctypes.CDLL(None).getpid()
with tempfile.NamedTemporaryFile() as f: sqlite3.connect(f.name).execute("create table t (x)")
def work(q): q.put(os.getpid())
q = multiprocessing.Queue()
p = multiprocessing.Process(target=work, args=(q,)); p.start(); q.get(); p.join()
subprocess.run(["true"], check=True)
t = threading.Thread(target=lambda: hashlib.sha256(os.urandom(16)).digest()); t.start(); t.join()
async def main():
    s = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    r, w = await asyncio.open_connection(*s.sockets[0].getsockname())
    assert await r.read() == b""
    s.close()
asyncio.run(main())
`

const nodeApp = `
const http = require("http"), {Worker} = require("worker_threads"), cp = require("child_process"), fs = require("fs"), crypto = require("crypto");
let x = 0; for (let i = 0; i < 3e6; i++) x = (x * 31 + i) | 0; // hot enough to be compiled
cp.execFileSync("true"); crypto.randomBytes(16); fs.mkdtempSync("/tmp/a");
new WebAssembly.Module(new Uint8Array([0,97,115,109,1,0,0,0]));
new Worker("1", {eval: true}).on("exit", () => {
  const s = http.createServer((q, r) => r.end("ok")).listen(0, "127.0.0.1", () =>
    http.get({port: s.address().port, host: "127.0.0.1", agent: false}, r => { r.resume(); r.on("end", () => s.close()); }));
});
`

// greet answers on each passed socket with its name.
func greet(ctx context.Context) error {
	files, err := Listeners()
	if err != nil {
		return err
	}
	for _, f := range files {
		ln, err := net.FileListener(f)
		if err != nil {
			return err
		}
		name := f.Name()
		f.Close()
		context.AfterFunc(ctx, func() { ln.Close() })
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				io.WriteString(c, name)
				c.Close()
			}
		}()
	}
	return nil
}

// call prints what the server at WHERE says.
func call() error {
	network, address, _ := strings.Cut(os.Getenv("WHERE"), ":")
	c, err := net.Dial(strings.ToLower(network), address)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = io.Copy(os.Stdout, c)
	return err
}
