package remote_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/hotdeploy/hotdeploy/internal/sshtest"
	"github.com/hotdeploy/hotdeploy/remote"
)

// answers is a Prompt that gives its answers in turn and keeps the questions.
type answers struct {
	give  []string
	asked []string
}

func (a *answers) prompt(_ context.Context, prompt string, secret bool) (string, error) {
	a.asked = append(a.asked, prompt)
	if !secret {
		return "", errors.New("a passphrase that is shown")
	}
	if len(a.give) == 0 {
		return "", errors.New("nobody answers")
	}
	answer := a.give[0]
	a.give = a.give[1:]
	return answer, nil
}

func TestAuth_EncryptedKeyAsksForItsPassphrase(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		key := newKey(t)
		srv := start(t, serverOptions{authorized: []ssh.PublicKey{key.Public()}})
		h := hostOf(t, srv, writeKey(t, key, "correct horse"))
		a := &answers{give: []string{"wrong", "correct horse", "correct horse"}}
		opts := remote.Options{Prompt: a.prompt, Keys: new(remote.Keys)}
		dial(t, h, opts)
		if len(a.asked) != 2 || !strings.Contains(a.asked[0], h.IdentityFiles[0]) {
			t.Errorf("asked %q", a.asked)
		}
		dial(t, h, opts)
		if len(a.asked) != 2 {
			t.Errorf("asked again: %q", a.asked)
		}
	})
}

func TestAuth_WrongPassphraseEndsAfterThree(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		key := newKey(t)
		srv := start(t, serverOptions{authorized: []ssh.PublicKey{key.Public()}})
		h := hostOf(t, srv, writeKey(t, key, "correct horse"))
		h.NoPassword, h.NoInteractive = true, true
		a := &answers{give: []string{"1", "2", "3", "correct horse"}}
		_, err := remote.Dial(deadline(t), h, remote.Options{Prompt: a.prompt})
		e := expectAuthError(t, err)
		if len(a.asked) != 3 || len(e.Keys) != 1 || e.Keys[0].Result != "wrong passphrase" {
			t.Errorf("asked %q, got %v", a.asked, err)
		}
	})
}

func TestAuth_KeyThatTheServerDoesNotTakeIsNotAskedFor(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, _ := newHost(t, start)
		h.NoPassword, h.NoInteractive = true, true
		h.IdentityFiles = []string{writeKey(t, newKey(t), "secret")}
		a := &answers{give: []string{"secret"}}
		_, err := remote.Dial(deadline(t), h, remote.Options{Prompt: a.prompt})
		e := expectAuthError(t, err)
		if len(a.asked) != 0 || len(e.Keys) != 1 || e.Keys[0].Result != "refused by the server" || e.Keys[0].Fingerprint == "" {
			t.Errorf("asked %q, got %+v", a.asked, e.Keys)
		}
		if len(e.Methods) == 0 || e.Methods[0] != "publickey" {
			t.Errorf("methods: %q", e.Methods)
		}
	})
}

func TestAuth_EncryptedKeyWithNobodyToAskSaysSo(t *testing.T) {
	h, _ := newHost(t, startInProcess)
	h.IdentityFiles = []string{writeKey(t, newKey(t), "secret")}
	_, err := remote.Dial(deadline(t), h, remote.Options{})
	if e := expectAuthError(t, err); len(e.Keys) != 1 || !strings.Contains(e.Keys[0].Result, "nobody to ask") {
		t.Errorf("got %+v", e.Keys)
	}
}

func TestAuth_KeyFileThatOthersMayReadIsNotUsed(t *testing.T) {
	h, _ := newHost(t, startInProcess)
	if err := os.Chmod(h.IdentityFiles[0], 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := remote.Dial(deadline(t), h, remote.Options{})
	if e := expectAuthError(t, err); !strings.Contains(err.Error(), "chmod 600") || len(e.Keys) != 1 {
		t.Errorf("got %v", err)
	}
}

func TestAuth_PromptThatIsCancelledEndsTheDial(t *testing.T) {
	key := newKey(t)
	srv := startInProcess(t, serverOptions{authorized: []ssh.PublicKey{key.Public()}})
	h := hostOf(t, srv, writeKey(t, key, "secret"))
	ctx, cancel := context.WithCancel(deadline(t))
	prompt := func(ctx context.Context, _ string, _ bool) (string, error) {
		cancel()
		<-ctx.Done()
		return "", ctx.Err()
	}
	if _, err := remote.Dial(ctx, h, remote.Options{Prompt: prompt}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestAuth_PasswordIsAskedForLast(t *testing.T) {
	srv, err := sshtest.Start(sshtest.Options{Password: "open sesame"})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	for _, noInteractive := range []bool{false, true} {
		h := hostOf(t, server{addr: srv.Addr(), user: "ann", knownHosts: srv.KnownHosts()}, writeKey(t, newKey(t), ""))
		h.NoInteractive = noInteractive
		a := &answers{give: []string{"wrong", "open sesame"}}
		dial(t, h, remote.Options{Prompt: a.prompt})
		if len(a.asked) != 2 || !strings.Contains(a.asked[0], "ann@127.0.0.1") {
			t.Errorf("asked %q", a.asked)
		}
	}
}

// startAgent serves a keyring on a socket.
func startAgent(t *testing.T, keys ...agent.AddedKey) string {
	t.Helper()
	ring := agent.NewKeyring()
	for _, k := range keys {
		if err := ring.Add(k); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(shortDir(t), "agent")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); agent.ServeAgent(ring, c) }()
		}
	}()
	return path
}

func TestAuth_AgentSigns(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		key := newKey(t)
		srv := start(t, serverOptions{authorized: []ssh.PublicKey{key.Public()}})
		h := hostOf(t, srv, "")
		h.Agent = startAgent(t, agent.AddedKey{PrivateKey: newKey(t).Private}, agent.AddedKey{PrivateKey: key.Private})
		dial(t, h, remote.Options{})
	})
}

func TestAuth_IdentitiesOnlyHoldsTheAgentBack(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		key := newKey(t)
		srv := start(t, serverOptions{authorized: []ssh.PublicKey{key.Public()}})
		h := hostOf(t, srv, "")
		h.Agent = startAgent(t, agent.AddedKey{PrivateKey: key.Private})
		h.IdentitiesOnly = true
		_, err := remote.Dial(deadline(t), h, remote.Options{})
		if e := expectAuthError(t, err); len(e.Keys) != 0 {
			t.Errorf("tried %v", e.Keys)
		}
		// named by its public half, it may be used
		h.IdentityFiles = []string{writeFile(t, ssh.MarshalAuthorizedKey(key.Public()), 0o644)}
		dial(t, h, remote.Options{})
	})
}

func TestAuth_AgentThatIsGoneIsNoReasonToStop(t *testing.T) {
	h, _ := newHost(t, startInProcess)
	h.Agent = "/nonexistent/agent"
	dial(t, h, remote.Options{})
}

// certifiedUser is a server that trusts an authority only, and a key with
// the certificate of it.
func certifiedUser(t *testing.T, start startServer) (server, sshtest.Key, *ssh.Certificate) {
	t.Helper()
	key, ca := newKey(t), newKey(t)
	cert, err := ca.Certify(key.Public(), ssh.UserCert, currentUser(t))
	if err != nil {
		t.Fatal(err)
	}
	return start(t, serverOptions{userCAs: []ssh.PublicKey{ca.Public()}}), key, cert
}

func TestAuth_CertificateBesideTheKey(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		srv, key, cert := certifiedUser(t, start)
		h := hostOf(t, srv, writeKey(t, key, ""))
		if err := os.WriteFile(h.IdentityFiles[0]+"-cert.pub", ssh.MarshalAuthorizedKey(cert), 0o644); err != nil {
			t.Fatal(err)
		}
		dial(t, h, remote.Options{})
	})
}

func TestAuth_CertificateFileWithAnEncryptedKey(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		srv, key, cert := certifiedUser(t, start)
		h := hostOf(t, srv, writeKey(t, key, "secret"))
		h.CertificateFiles = []string{writeFile(t, ssh.MarshalAuthorizedKey(cert), 0o644)}
		a := &answers{give: []string{"secret"}}
		dial(t, h, remote.Options{Prompt: a.prompt})
	})
}

func TestAuth_CertificateWithTheKeyInTheAgent(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		srv, key, cert := certifiedUser(t, start)
		h := hostOf(t, srv, "")
		h.Agent = startAgent(t, agent.AddedKey{PrivateKey: key.Private})
		h.CertificateFiles = []string{writeFile(t, ssh.MarshalAuthorizedKey(cert), 0o644)}
		dial(t, h, remote.Options{})
	})
}

func TestAuth_CertificateInTheAgent(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		srv, key, cert := certifiedUser(t, start)
		h := hostOf(t, srv, "")
		h.Agent = startAgent(t, agent.AddedKey{PrivateKey: key.Private, Certificate: cert})
		dial(t, h, remote.Options{})
	})
}

func expectAuthError(t *testing.T, err error) *remote.ErrAuth {
	t.Helper()
	var e *remote.ErrAuth
	if !errors.As(err, &e) || !errors.Is(err, remote.ErrNeverRan) {
		t.Fatalf("got %v", err)
	}
	return e
}
