package remote_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hotdeploy/hotdeploy/internal/sshtest/opensshd"
	"github.com/hotdeploy/hotdeploy/remote"
)

func needSSH(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("ssh"); err != nil {
		opensshd.Skip(t, "there is no ssh")
	}
}

func resolve(t *testing.T, dest, config string) remote.Host {
	t.Helper()
	needSSH(t)
	h, err := remote.Resolve(deadline(t), dest, remote.Options{ConfigFile: writeFile(t, []byte(config), 0o600)})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestResolve_SeesWhatSSHSees(t *testing.T) {
	included := writeFile(t, []byte("Host web\n  Port 2222\n"), 0o600)
	t.Setenv("HD_TEST_AGENT", "/run/agent")
	h := resolve(t, "web", `
Include `+included+`
Host web
  HostName 192.0.2.1
  IdentityFile /keys/%h-key
  IdentityFile /keys/second
  CertificateFile /keys/cert
  IdentitiesOnly yes
  IdentityAgent $HD_TEST_AGENT
  UserKnownHostsFile /kh/one "/kh/with space"
  HostKeyAlias web-alias
  ConnectTimeout 7
  ServerAliveInterval 1
  PasswordAuthentication no
  AddressFamily inet
  Ciphers aes256-gcm@openssh.com,aes128-cbc
Match host 192.0.2.1
  User matched
`)
	for _, c := range []struct{ what, got, want string }{
		{"dial", h.Addr(), "192.0.2.1:2222"},
		{"user", h.User, "matched"},
		{"identity files", strings.Join(h.IdentityFiles, " "), "/keys/192.0.2.1-key /keys/second"},
		{"certificate files", strings.Join(h.CertificateFiles, " "), "/keys/cert"},
		{"agent", h.Agent, "/run/agent"},
		{"known hosts", strings.Join(h.KnownHosts[:2], ","), "/kh/one,/kh/with space"},
		{"alias", h.HostKeyAlias, "web-alias"},
		{"times", fmt.Sprint(h.ConnectTimeout, h.KeepAlive), fmt.Sprint(7*time.Second, time.Second)},
		{"family", h.Family, "tcp4"},
		{"flags", fmt.Sprint(h.IdentitiesOnly, h.NoPassword, h.NoInteractive), "true true false"},
		{"ciphers that are good", strings.Join(h.Ciphers, " "), "aes256-gcm@openssh.com"},
		{"name", h.String(), "web"},
	} {
		if c.got != c.want {
			t.Errorf("%s: got %q, want %q", c.what, c.got, c.want)
		}
	}
}

func TestResolve_CiphersOfNobodysChoiceAreLeftToUs(t *testing.T) {
	if h := resolve(t, "web", ""); h.Ciphers != nil || h.HostKeys != nil {
		t.Errorf("got %q and %q", h.Ciphers, h.HostKeys)
	}
	h := resolve(t, "web", "Ciphers aes256-gcm@openssh.com,aes128-ctr\nHostKeyAlgorithms ssh-ed25519\n")
	if strings.Join(h.Ciphers, " ") != "aes256-gcm@openssh.com aes128-ctr" || strings.Join(h.HostKeys, " ") != "ssh-ed25519" {
		t.Errorf("got %q and %q", h.Ciphers, h.HostKeys)
	}
}

func TestResolve_CommandLineWinsOverConfiguration(t *testing.T) {
	h := resolve(t, "ann@web:2200", "Host web\n  User bob\n  Port 22\n")
	if h.User != "ann" || h.Port != 2200 || h.Name != "web" {
		t.Errorf("got %+v", h)
	}
	h = resolve(t, "ssh://[2001:db8::1]:2200", "")
	if h.Addr() != "[2001:db8::1]:2200" {
		t.Errorf("got %s", h.Addr())
	}
}

func TestResolve_HopsAreThoseOfSSH(t *testing.T) {
	h := resolve(t, "web", `
Host web
  ProxyJump first,ann@second:2222
Host first
  HostName 192.0.2.1
  ProxyJump before
Host second
  HostName 192.0.2.2
  ProxyJump never
Host before
  HostName 192.0.2.3
`)
	var hops []string
	for _, hop := range h.Jumps {
		hops = append(hops, hop.Addr())
		if len(hop.Jumps) > 0 {
			t.Errorf("%s has hops of its own", hop)
		}
	}
	if got := strings.Join(hops, " "); got != "192.0.2.3:22 192.0.2.1:22 192.0.2.2:2222" {
		t.Errorf("got %s", got)
	}
	if h.Jumps[2].User != "ann" {
		t.Errorf("got user %s", h.Jumps[2].User)
	}
}

func TestResolve_CircleOfHopsIsAnError(t *testing.T) {
	needSSH(t)
	config := writeFile(t, []byte("Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n"), 0o600)
	if h, err := remote.Resolve(deadline(t), "a", remote.Options{ConfigFile: config}); err == nil {
		t.Errorf("got %+v", h)
	}
}

func TestResolve_BrokenConfigurationIsTheErrorOfSSH(t *testing.T) {
	needSSH(t)
	config := writeFile(t, []byte("Host a\n  NoSuchOption yes\n"), 0o600)
	_, err := remote.Resolve(deadline(t), "a", remote.Options{ConfigFile: config})
	if err == nil || !strings.Contains(strings.ToLower(err.Error()), "nosuchoption") {
		t.Errorf("got %v", err)
	}
}

func TestResolve_OptionInPlaceOfADestinationIsRefused(t *testing.T) {
	if _, err := remote.Resolve(deadline(t), "-oProxyCommand=id", remote.Options{}); !errors.Is(err, remote.ErrDestination) {
		t.Errorf("got %v", err)
	}
}

func TestResolve_EndsWithItsContext(t *testing.T) {
	needSSH(t)
	fifo := filepath.Join(t.TempDir(), "started")
	if err := exec.Command("mkfifo", fifo).Run(); err != nil {
		t.Fatal(err)
	}
	config := writeFile(t, []byte(`Match exec "echo >`+fifo+`; exec cat"`+"\n  Port 1\n"), 0o600)
	ctx, cancel := context.WithCancel(deadline(t))
	go func() { os.ReadFile(fifo); cancel() }()
	if _, err := remote.Resolve(ctx, "web", remote.Options{ConfigFile: config}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestResolve_WithoutSSHTheDefaultsCount(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv("SSH_AUTH_SOCK", "/run/agent")
	h, err := remote.Resolve(deadline(t), "web", remote.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if h.Addr() != "web:22" || h.User == "" || !strings.HasSuffix(h.IdentityFiles[0], "/.ssh/id_ed25519") || h.Agent != "/run/agent" ||
		!strings.HasSuffix(h.KnownHosts[0], "/.ssh/known_hosts") {
		t.Errorf("got %+v", h)
	}
	if _, err := remote.Resolve(deadline(t), "web", remote.Options{ConfigFile: "/some/config"}); err == nil {
		t.Error("a configuration that nobody can read was ignored")
	}
}

// hopConfig is a configuration in which far is reached through two hops,
// with a key for each.
func hopConfig(t *testing.T, start startServer) (config string, servers [3]server, knownHosts string) {
	t.Helper()
	var b strings.Builder
	var known strings.Builder
	for i, name := range []string{"near", "middle", "far"} {
		key := newKey(t)
		servers[i] = start(t, serverOptions{authorized: []ssh.PublicKey{key.Public()}})
		fmt.Fprintf(&b, "Host %s\n  HostName 127.0.0.1\n  Port %d\n  User %s\n  IdentityFile %s\n",
			name, servers[i].port(), servers[i].user, writeKey(t, key, ""))
		known.WriteString(servers[i].knownHosts)
	}
	knownHosts = writeFile(t, []byte(known.String()), 0o600)
	fmt.Fprintf(&b, "Host far\n  ProxyJump near,middle\nHost *\n  IdentitiesOnly yes\n  GlobalKnownHostsFile /dev/null\n  UserKnownHostsFile %s\n", knownHosts)
	return b.String(), servers, knownHosts
}

func TestDial_ThroughTwoHops(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		config, servers, _ := hopConfig(t, start)
		h := resolve(t, "far", config)
		s := dial(t, h, remote.Options{})
		dir := t.TempDir()
		part := partOf(randomBytes(3<<20, 1))
		if err := remote.Upload(deadline(t), s, dir, []remote.Part{part}, nil); err != nil {
			t.Fatal(err)
		}
		check(t, dir, part)
		servers[1].drop()
		<-s.Done()
		if !errors.Is(s.Err(), remote.ErrLineLost) {
			t.Errorf("got %v", s.Err())
		}
	})
}

func TestDial_UnknownKeyOfAHopStopsThere(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		config, servers, knownHosts := hopConfig(t, start)
		if err := os.WriteFile(knownHosts, []byte(servers[0].knownHosts+servers[2].knownHosts), 0o600); err != nil {
			t.Fatal(err)
		}
		h := resolve(t, "far", config)
		_, err := remote.Dial(deadline(t), h, remote.Options{})
		var unknown *remote.ErrUnknownHostKey
		if !errors.As(err, &unknown) {
			t.Fatalf("got %v", err)
		}
		want := "ssh -F " + h.ConfigFile + " -o StrictHostKeyChecking=ask -o HostKeyAlgorithms=ssh-ed25519 -J near middle true"
		if unknown.Fingerprint != ssh.FingerprintSHA256(servers[1].hostKey) || unknown.Command != want {
			t.Errorf("got %+v", unknown)
		}
	})
}

func TestDial_ThroughAProxyCommand(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, _ := newHost(t, start)
		// any stream will do: here ssh itself, to the same server
		h.ProxyCommand = fmt.Sprintf("ssh -F /dev/null -p %d -i %s -o IdentitiesOnly=yes -o UserKnownHostsFile=%s -W 127.0.0.1:%d %s@127.0.0.1",
			h.Port, h.IdentityFiles[0], h.KnownHosts[0], h.Port, h.User)
		needSSH(t)
		s := dial(t, h, remote.Options{})
		if out, err := s.Output(deadline(t), 100, "echo", "hello"); err != nil || string(out) != "hello\n" {
			t.Errorf("got %q, %v", out, err)
		}
	})
}

func TestDial_ProxyCommandThatFailsIsUnreachable(t *testing.T) {
	h, _ := newHost(t, startInProcess)
	h.ProxyCommand = "false"
	var unreachable *remote.ErrUnreachable
	if _, err := remote.Dial(deadline(t), h, remote.Options{}); !errors.As(err, &unreachable) {
		t.Errorf("got %v", err)
	}
}

func TestErrUnknownHostKey_CommandAsksAndAccepts(t *testing.T) {
	needSSH(t)
	config, servers, knownHosts := hopConfig(t, startOpenSSH)
	if err := os.WriteFile(knownHosts, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h := resolve(t, "near", config)
	_, err := remote.Dial(deadline(t), h, remote.Options{})
	var unknown *remote.ErrUnknownHostKey
	if !errors.As(err, &unknown) {
		t.Fatalf("got %v", err)
	}
	// setsid: no terminal; ssh then asks through the program of SSH_ASKPASS,
	// which here keeps the question and says yes
	question := filepath.Join(t.TempDir(), "question")
	askpass := writeFile(t, []byte("#!/bin/sh\necho \"$1\" >>"+question+"\necho yes\n"), 0o700)
	cmd := exec.CommandContext(deadline(t), "setsid", "-w", "sh", "-c", unknown.Command)
	cmd.Env = append(os.Environ(), "SSH_ASKPASS="+askpass, "SSH_ASKPASS_REQUIRE=force", "DISPLAY=:0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	asked, _ := os.ReadFile(question)
	if !strings.Contains(string(asked), unknown.Fingerprint) || unknown.Fingerprint != ssh.FingerprintSHA256(servers[0].hostKey) {
		t.Errorf("ssh asked %q", asked)
	}
	dial(t, h, remote.Options{})
}
