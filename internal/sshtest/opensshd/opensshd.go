package opensshd

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/hotdeploy/hotdeploy/internal/sshtest"
)

// Options say whom sshd lets in and what it allows.
type Options struct {
	AuthorizedKeys []ssh.PublicKey
	UserCAs        []ssh.PublicKey
	// HostKey is its key; the zero value means a new one. HostCert, if not
	// nil, is the certificate of it.
	HostKey           sshtest.Key
	HostCert          *ssh.Certificate
	ForbidStreamLocal bool
	// Config are further lines of sshd_config.
	Config []string
}

// Server is a running sshd. The test's cleanup ends it.
type Server struct {
	Addr    string
	HostKey ssh.PublicKey
	User    string // the only one who can log in
	pid     int
}

// Port is the port of Addr.
func (s *Server) Port() int {
	_, port, _ := net.SplitHostPort(s.Addr)
	n, _ := strconv.Atoi(port)
	return n
}

// KnownHosts is the line for known_hosts that trusts this server.
func (s *Server) KnownHosts() string {
	return knownhosts.Line([]string{s.Addr}, s.HostKey) + "\n"
}

// Skip skips the test because something is missing, in a loud line; with
// CI=true that is a failure.
func Skip(tb testing.TB, why string) {
	tb.Helper()
	if os.Getenv("CI") == "true" {
		tb.Fatalf("CI must not skip this: %s", why)
	}
	fmt.Fprintf(os.Stderr, "\n*** SKIPPED %s: %s ***\n\n", tb.Name(), why)
	tb.Skip(why)
}

// Start runs sshd until the test ends. What it logs is printed if the test
// fails.
func Start(tb testing.TB, opts Options) *Server {
	tb.Helper()
	b, err := find()
	if err != nil {
		Skip(tb, err.Error())
	}
	s, err := start(tb, b, opts)
	if err != nil {
		tb.Fatalf("start sshd: %v", err)
	}
	return s
}

func start(tb testing.TB, b binaries, opts Options) (*Server, error) {
	// not tb.TempDir: its long name does not matter to sshd, but a test's
	// own directory must be able to go away before sshd does
	dir, err := os.MkdirTemp("", "opensshd-")
	if err != nil {
		return nil, err
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	if opts.HostKey.Signer == nil {
		if opts.HostKey, err = sshtest.NewKey(); err != nil {
			return nil, err
		}
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	if err := writeFiles(dir, port, b, opts); err != nil {
		return nil, err
	}
	cmd, err := command(dir, b)
	if err != nil {
		return nil, err
	}
	s := &Server{Addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), HostKey: opts.HostKey.Public(), User: userName()}
	return s, s.launch(tb, cmd)
}

// freePort is a port that was free a moment ago: sshd cannot say which one
// it got if asked for 0.
func freePort() (int, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port, nil
}

func writeFiles(dir string, port int, b binaries, opts Options) error {
	pem, err := opts.HostKey.PEM("")
	if err != nil {
		return err
	}
	files := map[string][]byte{
		"host_key":   pem,
		"authorized": marshalKeys(opts.AuthorizedKeys),
		"user_ca":    marshalKeys(opts.UserCAs),
		"config":     []byte(config(dir, port, b, opts)),
	}
	if opts.HostCert != nil {
		files["host_key-cert.pub"] = ssh.MarshalAuthorizedKey(opts.HostCert)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func marshalKeys(keys []ssh.PublicKey) (out []byte) {
	for _, k := range keys {
		out = append(out, ssh.MarshalAuthorizedKey(k)...)
	}
	return out
}

func config(dir string, port int, b binaries, opts Options) string {
	lines := append([]string(nil), opts.Config...) // the first value of a setting counts
	lines = append(lines,
		"ListenAddress 127.0.0.1", "Port "+strconv.Itoa(port), "PidFile none", "LogLevel VERBOSE",
		"HostKey "+dir+"/host_key", "AuthorizedKeysFile "+dir+"/authorized", "StrictModes no",
		"UsePAM no", "PasswordAuthentication no", "KbdInteractiveAuthentication no",
		"PermitRootLogin prohibit-password", "PrintMotd no", "UseDNS no", "MaxStartups 100", "MaxSessions 100",
		"Subsystem sftp "+b.sftp,
	)
	if opts.HostCert != nil {
		lines = append(lines, "HostCertificate "+dir+"/host_key-cert.pub")
	}
	if len(opts.UserCAs) > 0 {
		lines = append(lines, "TrustedUserCAKeys "+dir+"/user_ca")
	}
	if opts.ForbidStreamLocal {
		lines = append(lines, "AllowStreamLocalForwarding no")
	}
	return strings.Join(lines, "\n") + "\n"
}

func userName() string {
	out, err := exec.Command("id", "-un").Output()
	if err != nil {
		return "root"
	}
	return strings.TrimSpace(string(out))
}

// privileges is run in a mount namespace of its own when root runs the test:
// sshd then insists on a user and a directory to lower its privileges with.
// So where they are missing, commands there see an empty /run.
const privileges = `set -e
dir=$1; shift
if ! grep -q '^sshd:' /etc/passwd; then
	{ cat /etc/passwd; echo 'sshd:x:64022:65534::/run/sshd:/usr/sbin/nologin'; } >"$dir/passwd"
	chmod 644 "$dir/passwd"
	mount --bind "$dir/passwd" /etc/passwd
fi
if ! [ -d /run/sshd ]; then
	mkdir "$dir/run" "$dir/run/sshd"
	mount --bind "$dir/run" /run
fi
exec "$@"`

func command(dir string, b binaries) (*exec.Cmd, error) {
	args := []string{b.sshd, "-D", "-e", "-f", filepath.Join(dir, "config")}
	if os.Getuid() == 0 {
		if err := os.Chmod(dir, 0o755); err != nil { // for the lowered privileges
			return nil, err
		}
		args = append([]string{"unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", privileges, "sh", dir}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	if b.libs != "" {
		cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+b.libs)
	}
	return cmd, nil
}

// launch starts sshd and waits until it says that it listens.
func (s *Server) launch(tb testing.TB, cmd *exec.Cmd) error {
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.pid = cmd.Process.Pid
	listening := make(chan error, 1)
	var log strings.Builder // written by the goroutine until logged is closed
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		follow(stderr, &log, listening)
	}()
	tb.Cleanup(func() {
		s.DropAll()
		cmd.Process.Kill()
		<-logged
		cmd.Wait()
		if tb.Failed() {
			tb.Logf("log of sshd:\n%s", log.String())
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	select {
	case err := <-listening:
		return err
	case <-ctx.Done():
		return fmt.Errorf("it does not say that it listens: %w", ctx.Err())
	}
}

func follow(stderr io.Reader, log *strings.Builder, listening chan<- error) {
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		log.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), "Server listening on") {
			select {
			case listening <- nil:
			default:
			}
		}
	}
	select {
	case listening <- fmt.Errorf("it ended: %s", log.String()):
	default:
	}
}

// DropAll kills the sshd of each connection and what runs below it, and
// leaves the one that listens.
func (s *Server) DropAll() {
	for _, pid := range descendants(s.pid) {
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

// descendants are the processes below pid, from /proc.
func descendants(pid int) (all []int) {
	parents := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		data, _ := os.ReadFile(file)
		// pid (name) state ppid; the name may contain anything
		_, after, _ := strings.Cut(string(data[bytes.LastIndexByte(data, ')')+1:]), " ")
		fields := strings.Fields(after)
		if len(fields) < 2 {
			continue
		}
		child, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		parent, _ := strconv.Atoi(fields[1])
		parents[parent] = append(parents[parent], child)
	}
	for next := []int{pid}; len(next) > 0; next = next[1:] {
		all = append(all, parents[next[0]]...)
		next = append(next, parents[next[0]]...)
	}
	return all
}
