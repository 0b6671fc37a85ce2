package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/testdata/lab"
	"github.com/hotdeploy/hotdeploy/testdata/load"
)

// patience is how long a test waits for what must come. Reaching it is a failure.
const patience = time.Minute

// service is a project's service on one machine.
type service struct {
	*project
	vm     *lab.Machine
	host   string // how the operator calls the machine
	daemon *api.Client
}

// newService sets a new service up on a machine, as its operator would, and takes it down with the test.
func newService(t *testing.T, vm *lab.Machine) *service {
	t.Helper()
	s := newProject(t).on(vm)
	s.setup()
	return s
}

// on is the project's service on a machine, which may not be there yet.
func (p *project) on(vm *lab.Machine) *service {
	s := &service{project: p, vm: vm, host: vm.Name}
	s.daemon = api.NewClient(s.dialControl)
	p.t.Cleanup(func() {
		s.report()
		s.daemon.Close()
		s.remove()
	})
	return s
}

// under is the same service in a subtest.
func (s *service) under(t *testing.T) *service {
	one, project := *s, *s.project
	one.project, project.t = &project, t
	return &one
}

func (s *service) setup(args ...string) *command {
	s.t.Helper()
	s.write()
	return s.hotdeploy(append([]string{"setup", s.host}, args...)...).want(0)
}

// report logs what the machine's journal has of the service, if the test failed.
func (s *service) report() {
	const most = 60
	if !s.t.Failed() {
		return
	}
	lines := strings.SplitAfter(s.vm.Journal(s.service), "\n")
	s.t.Logf("%s, journal of %s:\n%s", s.vm.Name, s.service, strings.Join(lines[max(0, len(lines)-most):], ""))
}

// remove ends what is left of the service, so that later tests have a quiet machine.
func (s *service) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := s.vm.Enter(ctx, s.named(`systemctl kill -s KILL NAME.service; systemctl disable --now NAME.service $(cd /etc/systemd/system; ls -d NAME-*.socket 2>/dev/null)
		rm -rf /etc/systemd/system/NAME[.-]* /etc/hotdeploy/NAME.toml /srv/NAME; systemctl daemon-reload; systemctl reset-failed; true`))
	if err != nil && !errors.Is(err, lab.ErrDown) {
		s.t.Logf("take %s down: %v", s.service, err)
	}
}

// push writes hotdeploy.toml and pushes to the machine, to the end.
func (s *service) push(version string, changes ...change) *command {
	s.t.Helper()
	return s.startPush(version, changes...).wait()
}

func (s *service) startPush(version string, changes ...change) *command {
	s.t.Helper()
	s.write(changes...)
	return s.start("push", "--version", version, s.host)
}

// run runs a shell command on the machine, as root and not through what is tested. NAME in it is the service.
func (s *service) run(cmd string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := s.vm.Enter(ctx, s.named(cmd))
	if err != nil {
		s.t.Fatalf("%v", err)
	}
	return strings.TrimSpace(out)
}

// named puts the service's name into a shell command.
func (s *service) named(cmd string) string { return strings.ReplaceAll(cmd, "NAME", s.service) }

// get asks the app on a new connection.
func (s *service) get(path string) (body string, mark string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := world.DialContext(ctx, "tcp", s.addr())
	if err != nil {
		return "", "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n", path)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return "", "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return strings.TrimSpace(string(text)), resp.Header.Get("X-Build-Mark"), err
}

func (s *service) addr() string { return s.vm.Addr(s.port) }

// serves fails the test unless a client that comes now is served by that version.
func (s *service) serves(version string) {
	s.t.Helper()
	if got, _, err := s.get("/version"); err != nil || got != version {
		s.t.Errorf("%s on %s serves %q (%v), want %q", s.service, s.vm.Name, got, err, version)
	}
}

// load begins load on the app, which ends with the test.
func (s *service) load(o load.Options) *load.Load {
	s.t.Helper()
	o.Addr, o.Dial = s.addr(), world.DialContext
	l, err := load.Start(context.Background(), o)
	must(s.t, err)
	s.t.Cleanup(func() {
		over, cancel := context.WithCancel(context.Background())
		cancel()
		l.Stop(over)
	})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	must(s.t, l.Ready(ctx))
	return l
}

// unnoticed ends load and fails the test if any client noticed anything.
func unnoticed(t *testing.T, l *load.Load) load.Report {
	t.Helper()
	r := stopLoad(l)
	if err := r.Err(); err != nil {
		t.Error(err)
	}
	return r
}

func stopLoad(l *load.Load) load.Report {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return l.Stop(ctx)
}

// beat waits until every client has shown a sign of life.
func beat(t *testing.T, l *load.Load) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := l.Beat(ctx); err != nil {
		t.Error(err)
	}
}

// truth is what is so on the machine, by its files and by what its clients are told.
type truth struct {
	committed, current, serving string
	releases                    []string
	temporary                   string // what should never be seen: something half there
}

// look looks at a machine where no upgrade is in flight.
func (s *service) look() truth {
	s.t.Helper()
	var is truth
	out := s.run(`cd /srv/NAME; readlink current || echo none; ls -1A releases | grep -v '^\.' | sort; echo --; ls -1dA releases/.[!.]* 2>/dev/null; true`)
	files, half, _ := strings.Cut(out, "--")
	lines := strings.Fields(files)
	is.current, is.releases, is.temporary = strings.TrimPrefix(lines[0], "releases/"), lines[1:], strings.TrimSpace(half)
	if st := s.status(); st.Committed != nil {
		is.committed = st.Committed.Version
	}
	var err error
	if is.serving, _, err = s.get("/version"); err != nil {
		is.serving = "nothing: " + err.Error()
	}
	return is
}

// consistent fails the test unless one release, and that one wholly, is committed, current and serving. It returns which.
func (s *service) consistent() string {
	s.t.Helper()
	var is truth
	until(s.t, "nothing is half there", func() bool { // the daemon may still be at what a lost caller asked for
		is = s.look()
		return is.temporary == ""
	})
	if is.committed == "" || is.current != is.committed || is.serving != is.committed || !slices.Contains(is.releases, is.committed) {
		s.t.Errorf("%s on %s: committed %q, current %q, serving %q, releases %q", s.service, s.vm.Name,
			is.committed, is.current, is.serving, is.releases)
	}
	return is.committed
}

// until asks again and again, for what nothing tells by itself, and gives up in the end.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	limit := time.Now().Add(patience)
	for !is() {
		if time.Now().After(limit) {
			t.Fatalf("it took more than %s until %s", patience, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
