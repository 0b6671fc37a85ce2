// Command demo shows the main job without root, sshd and systemd: an SSH server on loopback, the daemon, and the
// command push releases 1, 2 and a broken 3 of wslive, while WebSockets are held open and short requests come in. The
// WebSockets move to release 2, to the broken 3, and back. It fails if a client noticed anything.
//
// Read run first.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hotdeploy/hotdeploy/internal/sshtest"
	"github.com/hotdeploy/hotdeploy/testdata/load"
)

// What the clients do meanwhile.
const (
	webSockets     = 100
	newConnections = 50 // a second
	messageEvery   = 100 * time.Millisecond
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo: failed:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	d, err := prepare(ctx)
	if err != nil {
		return err
	}
	defer d.close()

	step("Release 1 goes to a host that has none.")
	if err := d.push(ctx, "1", "", 0); err != nil {
		return err
	}
	step(fmt.Sprintf("Clients come: %d WebSockets stay open from here on, %d new connections a second.", webSockets, newConnections))
	clients, err := load.Start(ctx, load.Options{Addr: d.addr, WebSockets: webSockets, NewConnsPerSecond: newConnections, MessageInterval: messageEvery, Held: load.MayMove})
	if err != nil {
		return err
	}
	if err := clients.Ready(ctx); err != nil {
		return err
	}
	step("Release 2 takes over; the WebSockets move to it, and release 1 ends.")
	if err := d.push(ctx, "2", "", 0); err != nil {
		return err
	}
	step("Release 3 is broken: it starts, then says that it is not healthy. It is taken back, and the WebSockets with it.")
	if err := d.push(ctx, "3", `env = { WSLIVE_UNHEALTHY = "1" }`, 4); err != nil {
		return err
	}
	step("What the host says now.")
	if err := d.hotdeploy(ctx, 0, "status", "demo"); err != nil {
		return err
	}
	if err := clients.Beat(ctx); err != nil {
		return err
	}
	report := clients.Stop(ctx)
	fmt.Printf("\nconnections kept %d/%d · moved %d · messages lost %d · requests failed %d\n",
		report.Kept, report.Total, report.Changed, report.MessagesLost+report.MessagesDue, report.RequestsFailed)
	if err := report.Err(); err != nil {
		return err
	}
	if report.Versions["2"] != webSockets {
		return fmt.Errorf("release 2 should have all WebSockets in the end: %v", report.Versions)
	}
	return nil
}

func step(text string) { fmt.Printf("\n# %s\n", text) }

// demo is the host and the operator's machine, both in one temporary directory.
type demo struct {
	dir    string
	addr   string   // where the app listens
	host   string   // as the command is told of it
	ssh    []string // how it finds the configuration for that
	sshd   *sshtest.Server
	daemon *exec.Cmd
	log    *os.File
}

func prepare(ctx context.Context) (d *demo, err error) {
	if runtime.GOOS != "linux" {
		return nil, errors.New("the daemon runs on Linux only, and so does the demo")
	}
	dir, err := os.MkdirTemp("", "hotdeploy-demo")
	if err != nil {
		return nil, err
	}
	d = &demo{dir: dir, addr: freeAddr()}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if err := os.MkdirAll(filepath.Join(dir, "app", "bin"), 0o755); err != nil {
		return nil, err
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, "app", "bin", "wslive"), "./testdata/apps/wslive")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return nil, fmt.Errorf("build wslive: %w", err)
	}
	if err := d.startSSH(); err != nil {
		return nil, fmt.Errorf("start the SSH server: %w", err)
	}
	return d, d.startDaemon(ctx)
}

// startSSH serves SSH on loopback, and writes the configuration by which the command finds it under the name demo.
func (d *demo) startSSH() error {
	host, err := sshtest.NewKey()
	if err != nil {
		return err
	}
	user, err := sshtest.NewKey()
	if err != nil {
		return err
	}
	d.sshd, err = sshtest.Start(sshtest.Options{AuthorizedKeys: []ssh.PublicKey{user.Public()}, HostKeys: []ssh.Signer{host.Signer}})
	if err != nil {
		return err
	}
	pem, err := user.PEM("")
	if err != nil {
		return err
	}
	_, port, _ := strings.Cut(d.sshd.Addr(), ":")
	known := fmt.Sprintf("[127.0.0.1]:%s %s", port, ssh.MarshalAuthorizedKey(host.Public()))
	config := fmt.Sprintf("Host demo\n\tHostName 127.0.0.1\n\tPort %s\n\tUser demo\n\tIdentityFile %s\n\tIdentitiesOnly yes\n\tUserKnownHostsFile %s\n",
		port, d.path(".ssh/id_ed25519"), d.path(".ssh/known_hosts"))
	d.host, d.ssh = "demo", []string{"--ssh-config", d.path(".ssh/config")}
	if _, err := exec.LookPath("ssh"); err != nil { // nobody reads the configuration then; the command looks in the home directory
		d.host, d.ssh = "demo@"+d.sshd.Addr(), nil
	}
	return errors.Join(
		os.Mkdir(d.path(".ssh"), 0o700),
		os.WriteFile(d.path(".ssh/id_ed25519"), pem, 0o600),
		os.WriteFile(d.path(".ssh/known_hosts"), []byte(known), 0o600),
		os.WriteFile(d.path(".ssh/config"), []byte(config), 0o600))
}

func (d *demo) startDaemon(ctx context.Context) (err error) {
	if d.log, err = os.Create(d.path("daemon.log")); err != nil {
		return err
	}
	d.daemon = exec.Command("bin/hotdeployd-linux-"+runtime.GOARCH, "run", "--service", "wslive", "--root", d.path("srv"), "--run-dir", d.path("run"))
	d.daemon.Stdout, d.daemon.Stderr = d.log, d.log
	if err := d.daemon.Start(); err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	for { // the socket appears at some moment; without systemd nothing tells when
		if _, err := os.Stat(d.path("run/control.sock")); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

const project = `service = "wslive"

[pack]
files = ["bin/wslive"]

[run]
command = ["bin/wslive"]
%s

[[listen]]
name = "http"
network = "tcp"
address = "%s"

[health]
check = "http"
path = "/healthz"
interval = "200ms"

[soak]
duration = "2s"

[targets.demo]
hosts = ["%s"]
socket = "%s"
`

// push writes the project's file and pushes it as the given version; want is the exit status that belongs to it.
func (d *demo) push(ctx context.Context, version, more string, want int) error {
	text := fmt.Sprintf(project, more, d.addr, d.host, d.path("run/control.sock"))
	if err := os.WriteFile(d.path("app/hotdeploy.toml"), []byte(text), 0o644); err != nil {
		return err
	}
	return d.hotdeploy(ctx, want, "push", "--version", version, "demo")
}

// hotdeploy runs the command as an operator would.
func (d *demo) hotdeploy(ctx context.Context, want int, args ...string) error {
	fmt.Printf("$ hotdeploy %s\n", strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, "bin/hotdeploy", slices.Concat([]string{"--config", d.path("app/hotdeploy.toml")}, d.ssh, args)...)
	cmd.Env = append(os.Environ(), "HOME="+d.dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	err := cmd.Run()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != want {
		d.showLog()
		return fmt.Errorf("hotdeploy %s: exit status %v, not %d (%w)", args[0], cmd.ProcessState, want, err)
	}
	return nil
}

func (d *demo) showLog() {
	if f, err := os.Open(d.path("daemon.log")); err == nil {
		fmt.Println("--- the daemon's log:")
		io.Copy(os.Stdout, f)
		f.Close()
	}
}

func (d *demo) path(name string) string { return filepath.Join(d.dir, name) }

// close ends what was started and removes the directory, releases with their read-only directories included.
func (d *demo) close() {
	if d.daemon != nil && d.daemon.Process != nil {
		d.daemon.Process.Signal(syscall.SIGTERM)
		d.daemon.Wait()
	}
	if d.sshd != nil {
		d.sshd.Close()
	}
	if d.log != nil {
		d.log.Close()
	}
	filepath.WalkDir(d.dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			os.Chmod(path, 0o700)
		}
		return nil
	})
	os.RemoveAll(d.dir)
}

// freeAddr is a loopback address that nobody uses right now.
func freeAddr() string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "127.0.0.1:18080"
	}
	defer ln.Close()
	return ln.Addr().String()
}
