package sshtest_test

import (
	"bufio"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/hotdeploy/hotdeploy/internal/sshtest"
)

func start(t *testing.T, opts sshtest.Options) *sshtest.Server {
	t.Helper()
	s, err := sshtest.Start(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func newKey(t *testing.T) sshtest.Key {
	t.Helper()
	k, err := sshtest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func dial(s *sshtest.Server, key sshtest.Key) (*ssh.Client, error) {
	return ssh.Dial("tcp", s.Addr(), &ssh.ClientConfig{User: "any", HostKeyCallback: ssh.FixedHostKey(s.HostKey()),
		Auth: []ssh.AuthMethod{ssh.PublicKeys(key.Signer)}})
}

func TestServer_LetsNobodyInWhoseKeyItWasNotGiven(t *testing.T) {
	good, bad := newKey(t), newKey(t)
	s := start(t, sshtest.Options{AuthorizedKeys: []ssh.PublicKey{good.Public()}})
	if c, err := dial(s, bad); err == nil {
		c.Close()
		t.Error("a stranger is in")
	}
	c, err := dial(s, good)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c, err := dial(start(t, sshtest.Options{}), good); err == nil {
		c.Close()
		t.Error("the zero value lets somebody in")
	}
}

// TestServer_CloseKillsCommandsAndWaitsForNoOneWhoHasLeft: a daemon that a
// command has left behind, with the output still open, does not hold Close.
func TestServer_CloseKillsCommandsAndWaitsForNoOneWhoHasLeft(t *testing.T) {
	key := newKey(t)
	s := start(t, sshtest.Options{AuthorizedKeys: []ssh.PublicKey{key.Public()}})
	c, err := dial(s, key)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	session, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	out, err := session.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := session.Start("setsid sh -c 'echo $$; exec sleep 1000' & echo $$; wait"); err != nil {
		t.Fatal(err)
	}
	var pids []int
	lines := bufio.NewScanner(out)
	for len(pids) < 2 && lines.Scan() {
		pid, err := strconv.Atoi(strings.TrimSpace(lines.Text()))
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	s.Close()
	alive := 0
	for _, pid := range pids {
		if syscall.Kill(pid, 0) == nil {
			alive++
			syscall.Kill(pid, syscall.SIGKILL) // the one that has left
		}
	}
	if alive != 1 {
		t.Errorf("%d of %v were alive: the command should be dead and the daemon not", alive, pids)
	}
}
