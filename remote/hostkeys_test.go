package remote_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/hotdeploy/hotdeploy/remote"
)

// withKnownHosts is the host with another known_hosts file.
func withKnownHosts(t *testing.T, h remote.Host, lines ...string) remote.Host {
	t.Helper()
	h.KnownHosts = []string{writeFile(t, []byte(strings.Join(lines, "\n")+"\n"), 0o600)}
	return h
}

func keyLine(host string, key ssh.PublicKey) string {
	return host + " " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

func bracketed(s server) string { return fmt.Sprintf("[127.0.0.1]:%d", s.port()) }

func TestDial_UnknownKeyShowsItsFingerprintAndAddsNothing(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, srv := newHost(t, start)
		h = withKnownHosts(t, h, keyLine("elsewhere", srv.hostKey))
		before, _ := os.ReadFile(h.KnownHosts[0])
		_, err := remote.Dial(deadline(t), h, remote.Options{})
		var unknown *remote.ErrUnknownHostKey
		if !errors.As(err, &unknown) || !errors.Is(err, remote.ErrNeverRan) {
			t.Fatalf("got %v", err)
		}
		if unknown.Fingerprint != ssh.FingerprintSHA256(srv.hostKey) || unknown.KeyType != "ssh-ed25519" ||
			unknown.Host != bracketed(srv) || unknown.KnownHostsFile != h.KnownHosts[0] {
			t.Errorf("got %+v", unknown)
		}
		want := fmt.Sprintf("ssh -o StrictHostKeyChecking=ask -o HostKeyAlgorithms=ssh-ed25519 -o UserKnownHostsFile=%s -p %d -l %s 127.0.0.1 true",
			h.KnownHosts[0], srv.port(), srv.user)
		if unknown.Command != want {
			t.Errorf("got  %s\nwant %s", unknown.Command, want)
		}
		if after, _ := os.ReadFile(h.KnownHosts[0]); string(after) != string(before) {
			t.Errorf("known_hosts was changed to %q", after)
		}
	})
}

func TestDial_MissingKnownHostsIsAnEmptyOne(t *testing.T) {
	h, _ := newHost(t, startInProcess)
	h.KnownHosts = []string{"/nonexistent/known_hosts"}
	var unknown *remote.ErrUnknownHostKey
	if _, err := remote.Dial(deadline(t), h, remote.Options{}); !errors.As(err, &unknown) {
		t.Errorf("got %v", err)
	}
}

func TestDial_ChangedKeyStops(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, srv := newHost(t, start)
		old := newKey(t).Public()
		h = withKnownHosts(t, h, "# comment", keyLine(bracketed(srv), old))
		_, err := remote.Dial(deadline(t), h, remote.Options{})
		var changed *remote.ErrHostKeyChanged
		if !errors.As(err, &changed) {
			t.Fatalf("got %v", err)
		}
		if changed.File != h.KnownHosts[0] || changed.Line != 2 || changed.Known != ssh.FingerprintSHA256(old) ||
			changed.Fingerprint != ssh.FingerprintSHA256(srv.hostKey) {
			t.Errorf("got %+v", changed)
		}
	})
}

func TestDial_KeyOfAnotherTypeIsAChangedKey(t *testing.T) {
	h, srv := newHost(t, startInProcess)
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(&private.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	h = withKnownHosts(t, h, keyLine(bracketed(srv), key))
	var changed *remote.ErrHostKeyChanged
	if _, err := remote.Dial(deadline(t), h, remote.Options{}); !errors.As(err, &changed) {
		t.Errorf("got %v", err)
	}
}

func TestDial_HashedEntryIsFound(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, srv := newHost(t, start)
		dial(t, withKnownHosts(t, h, keyLine(knownhosts.HashHostname(bracketed(srv)), srv.hostKey)), remote.Options{})
	})
}

func TestDial_LineThatNobodyUnderstandsDoesNotShutOutTheRest(t *testing.T) {
	h, srv := newHost(t, startInProcess)
	old := newKey(t).Public()
	bad := []string{"host ssh-tomorrow AAAA", "|1|broken ssh-ed25519 AAAA", "@cert-authority", strings.Repeat("x", 70_000)}
	dial(t, withKnownHosts(t, h, append(bad, keyLine(bracketed(srv), srv.hostKey))...), remote.Options{})

	h = withKnownHosts(t, h, append(bad, keyLine(bracketed(srv), old))...)
	_, err := remote.Dial(deadline(t), h, remote.Options{})
	var changed *remote.ErrHostKeyChanged
	if !errors.As(err, &changed) || changed.File != h.KnownHosts[0] || changed.Line != len(bad)+1 {
		t.Errorf("got %v", err)
	}
}

func TestDial_RevokedKeyIsRefused(t *testing.T) {
	h, srv := newHost(t, startInProcess)
	h = withKnownHosts(t, h, keyLine(bracketed(srv), srv.hostKey), keyLine("@revoked *", srv.hostKey))
	var refused *remote.ErrHostKeyRefused
	if _, err := remote.Dial(deadline(t), h, remote.Options{}); !errors.As(err, &refused) {
		t.Errorf("got %v", err)
	}
}

func TestDial_AliasIsLookedUpInPlaceOfTheName(t *testing.T) {
	h, srv := newHost(t, startInProcess)
	h = withKnownHosts(t, h, keyLine("web-1", srv.hostKey))
	h.HostKeyAlias = "web-1"
	dial(t, h, remote.Options{})
}

// certified is a server that shows a certificate for the principals, and the
// authority's key.
func certified(t *testing.T, start startServer, principals ...string) (remote.Host, server, ssh.PublicKey) {
	t.Helper()
	key, hostKey, ca := newKey(t), newKey(t), newKey(t)
	cert, err := ca.Certify(hostKey.Public(), ssh.HostCert, principals...)
	if err != nil {
		t.Fatal(err)
	}
	srv := start(t, serverOptions{authorized: []ssh.PublicKey{key.Public()}, hostKey: hostKey, hostCert: cert})
	return hostOf(t, srv, writeKey(t, key, "")), srv, ca.Public()
}

func TestDial_HostCertificateOfAKnownAuthorityIsGood(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, srv, ca := certified(t, start, "127.0.0.1")
		dial(t, withKnownHosts(t, h, keyLine("@cert-authority "+bracketed(srv), ca)), remote.Options{})
		dial(t, withKnownHosts(t, h, keyLine("@cert-authority *", ca)), remote.Options{})
	})
}

func TestDial_HostCertificateThatIsNotGoodIsRefused(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, srv, ca := certified(t, start, "somebody-else")
		h = withKnownHosts(t, h, keyLine("@cert-authority "+bracketed(srv), ca))
		var refused *remote.ErrHostKeyRefused
		if _, err := remote.Dial(deadline(t), h, remote.Options{}); !errors.As(err, &refused) {
			t.Errorf("got %v", err)
		}
	})
}

func TestDial_PlainKeyWhereOnlyAnAuthorityIsKnownIsUnknownNotChanged(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, srv := newHost(t, start)
		h = withKnownHosts(t, h, keyLine("@cert-authority "+bracketed(srv), newKey(t).Public()))
		var unknown *remote.ErrUnknownHostKey
		if _, err := remote.Dial(deadline(t), h, remote.Options{}); !errors.As(err, &unknown) {
			t.Errorf("got %v", err)
		}
	})
}

func TestDial_CertificateOfAnUnknownAuthorityFallsBackToTheKnownKey(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, srv, _ := certified(t, start, "127.0.0.1")
		dial(t, withKnownHosts(t, h, keyLine(bracketed(srv), srv.hostKey)), remote.Options{})
	})
}

func TestDial_NobodyThereIsUnreachable(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h, _ := newHost(t, startInProcess)
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	h.Port, _ = strconv.Atoi(port)
	ln.Close()
	var unreachable *remote.ErrUnreachable
	if _, err := remote.Dial(deadline(t), h, remote.Options{}); !errors.As(err, &unreachable) || !errors.Is(err, remote.ErrNeverRan) {
		t.Errorf("got %v", err)
	}
}
