package sshtest

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"time"

	"golang.org/x/crypto/ssh"
)

// Key is a new ed25519 key pair.
type Key struct {
	Signer  ssh.Signer
	Private ed25519.PrivateKey
}

// NewKey makes a key pair.
func NewKey() (Key, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return Key{}, fmt.Errorf("make an ssh key: %w", err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return Key{}, fmt.Errorf("make an ssh key: %w", err)
	}
	return Key{signer, private}, nil
}

// Public is the public half.
func (k Key) Public() ssh.PublicKey { return k.Signer.PublicKey() }

// PEM is the private half as ssh-keygen writes it, encrypted where there is
// a passphrase. Write it with mode 0600: ssh refuses others.
func (k Key) PEM(passphrase string) ([]byte, error) {
	var block *pem.Block
	var err error
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(k.Private, "sshtest")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(k.Private, "sshtest", []byte(passphrase))
	}
	if err != nil {
		return nil, fmt.Errorf("write an ssh key: %w", err)
	}
	return pem.EncodeToMemory(block), nil
}

// Certify makes k an authority that signs key, as certType [ssh.UserCert]
// or [ssh.HostCert], for the given principals and for one hour.
func (k Key) Certify(key ssh.PublicKey, certType uint32, principals ...string) (*ssh.Certificate, error) {
	now := time.Now()
	cert := &ssh.Certificate{
		Key: key, Serial: 1, CertType: certType, KeyId: "sshtest", ValidPrincipals: principals,
		ValidAfter:  uint64(now.Add(-time.Hour).Unix()),
		ValidBefore: uint64(now.Add(time.Hour).Unix()),
	}
	if certType == ssh.UserCert {
		// what ssh-keygen gives a user by default
		cert.Extensions = map[string]string{"permit-port-forwarding": "", "permit-pty": ""}
	}
	if err := cert.SignCert(rand.Reader, k.Signer); err != nil {
		return nil, fmt.Errorf("sign an ssh certificate: %w", err)
	}
	return cert, nil
}
