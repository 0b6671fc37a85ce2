package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/sshtest"
)

// Options say what is deployed with what.
type Options struct {
	Source string // root of the source tree, where the app is built
	Bin    string // folder with hotdeploy and hotdeployd-linux-GOARCH; empty: they are built
	App    string // a Go app of testdata/apps
	Soak   time.Duration
	Output io.Writer // the operator's terminal
}

// Host is the machine.
type Host struct {
	opt    Options
	dir    string
	addr   string   // where the app listens
	name   string   // as the command is told of it
	ssh    []string // how it finds the configuration for that
	sshd   *sshtest.Server
	daemon *exec.Cmd
	log    *os.File
}

// Start returns a host without a release, ready for the first push. The caller closes it.
func Start(ctx context.Context, opt Options) (*Host, error) {
	if runtime.GOOS != "linux" {
		return nil, errors.New("the daemon runs on Linux only")
	}
	dir, err := os.MkdirTemp("", "hd") // short: socket paths are limited to 107 bytes
	if err != nil {
		return nil, err
	}
	h := &Host{opt: opt, dir: dir}
	if err := h.start(ctx); err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

func (h *Host) start(ctx context.Context) (err error) {
	if h.addr, err = freeAddr(); err != nil {
		return err
	}
	if err := h.build(ctx); err != nil {
		return err
	}
	if err := h.startSSH(); err != nil {
		return fmt.Errorf("start the SSH server: %w", err)
	}
	return h.startDaemon(ctx)
}

// Addr is where the app listens.
func (h *Host) Addr() string { return h.addr }

// build makes the app, and the programs if nobody has.
func (h *Host) build(ctx context.Context) error {
	if err := h.goBuild(ctx, h.path("app/bin", h.opt.App), "./testdata/apps/"+h.opt.App); err != nil || h.opt.Bin != "" {
		return err
	}
	h.opt.Bin = h.path("bin")
	return errors.Join(
		h.goBuild(ctx, h.path("bin/hotdeploy"), "./cmd/hotdeploy"),
		h.goBuild(ctx, h.path("bin", daemonName), "./cmd/hotdeployd"))
}

const daemonName = "hotdeployd-linux-" + runtime.GOARCH

func (h *Host) goBuild(ctx context.Context, out, pkg string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", out, pkg)
	cmd.Dir, cmd.Env = h.opt.Source, append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, text)
	}
	return nil
}

func (h *Host) startDaemon(ctx context.Context) (err error) {
	if h.log, err = os.Create(h.path("daemon.log")); err != nil {
		return err
	}
	h.daemon = exec.Command(filepath.Join(h.opt.Bin, daemonName), "run", "--service", h.opt.App, "--root", h.path("srv"), "--run-dir", h.path("run"))
	h.daemon.Stdout, h.daemon.Stderr = h.log, h.log
	if err := h.daemon.Start(); err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	for { // the socket appears at some moment; without systemd nothing tells when
		if _, err := os.Stat(h.path("run/control.sock")); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the daemon: %w", ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

const project = `service = "%s"

[pack]
files = ["bin/%[1]s"]

[run]
command = ["bin/%[1]s"]
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
duration = "%s"

[targets.%s]
hosts = ["%s"]
socket = "%s"
`

// target is what the host is called in the project.
const target = "demo"

// Push writes the project's file, with more in its section [run], and pushes it as the given version; want is the exit
// status that belongs to it.
func (h *Host) Push(ctx context.Context, version, more string, want int) error {
	text := fmt.Sprintf(project, h.opt.App, more, h.addr, h.opt.Soak, target, h.name, h.path("run/control.sock"))
	if err := os.WriteFile(h.path("app/hotdeploy.toml"), []byte(text), 0o644); err != nil {
		return err
	}
	return h.Hotdeploy(ctx, want, "push", "--version", version, target)
}

// Hotdeploy runs the command as an operator would. Where it ends otherwise than with the wanted exit status, the daemon's log is shown.
func (h *Host) Hotdeploy(ctx context.Context, want int, args ...string) error {
	fmt.Fprintf(h.opt.Output, "$ hotdeploy %s\n", strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, filepath.Join(h.opt.Bin, "hotdeploy"), slices.Concat([]string{"--config", h.path("app/hotdeploy.toml")}, h.ssh, args)...)
	cmd.Env = append(os.Environ(), "HOME="+h.dir)
	cmd.Stdout, cmd.Stderr = h.opt.Output, h.opt.Output
	err := cmd.Run()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != want {
		h.showLog()
		return fmt.Errorf("hotdeploy %s: %v instead of exit status %d (%w)", args[0], cmd.ProcessState, want, err)
	}
	return nil
}

func (h *Host) showLog() {
	if text, err := os.ReadFile(h.path("daemon.log")); err == nil {
		fmt.Fprintf(h.opt.Output, "--- the daemon's log:\n%s", text)
	}
}

func (h *Host) path(names ...string) string { return filepath.Join(h.dir, filepath.Join(names...)) }

// Close ends what was started and removes the directory, releases with their read-only directories included.
func (h *Host) Close() {
	if h.daemon != nil && h.daemon.Process != nil {
		h.daemon.Process.Signal(syscall.SIGTERM)
		h.daemon.Wait()
	}
	if h.sshd != nil {
		h.sshd.Close()
	}
	if h.log != nil {
		h.log.Close()
	}
	filepath.WalkDir(h.dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			os.Chmod(path, 0o700)
		}
		return nil
	})
	os.RemoveAll(h.dir)
}

// freeAddr is a loopback address that nobody uses right now.
func freeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}
