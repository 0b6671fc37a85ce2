package remote

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/crypto/ssh"
)

const (
	maxKeyFile     = 1 << 20
	maxPassphrases = 3
)

var (
	errPassphrase    = errors.New("wrong passphrase")
	errNobodyToAsk   = errors.New("it needs a passphrase and there is nobody to ask")
	errTooOpen       = errors.New("others may read it; ssh would not use it either (chmod 600)")
	errNotTheSameKey = errors.New("its .pub file is of another key")
)

// Keys remembers the keys that a passphrase has opened, so that several
// hosts and hops ask for it once. The zero value is ready.
type Keys struct {
	mu   sync.Mutex // protects open
	open map[string]ssh.AlgorithmSigner
}

func (k *Keys) get(file string) ssh.AlgorithmSigner {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.open[file]
}

func (k *Keys) put(file string, signer ssh.AlgorithmSigner) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.open == nil {
		k.open = map[string]ssh.AlgorithmSigner{}
	}
	k.open[file] = signer
}

// keyFile is a private key on disk. It is opened only when the server has
// said that it would take its public half, where that is known without
// opening it.
type keyFile struct {
	path   string
	data   []byte
	public ssh.PublicKey // nil: known only after opening
	signer ssh.AlgorithmSigner
}

// readKeyFile returns an error that is fs.ErrNotExist for a missing file.
// A file that is itself a public key (IdentityFile key.pub, the private half
// being in the agent) has no data.
func readKeyFile(path string, keys *Keys) (*keyFile, error) {
	data, info, err := readSmall(path)
	if err != nil {
		return nil, err
	}
	k := &keyFile{path: path, data: data}
	if public, _, _, _, err := ssh.ParseAuthorizedKey(data); err == nil {
		k.public, k.data = public, nil
		return k, nil
	}
	if info.Mode().Perm()&0o077 != 0 && ownedByUs(info) {
		return nil, errTooOpen
	}
	if k.signer = keys.get(path); k.signer != nil {
		k.public = k.signer.PublicKey()
		return k, nil
	}
	return k, k.inspect()
}

// inspect opens the key where it is not encrypted, and finds the public half
// where it is.
func (k *keyFile) inspect() error {
	signer, err := parseKey(k.data, nil)
	var missing *ssh.PassphraseMissingError
	switch {
	case err == nil:
		k.signer, k.public = signer, signer.PublicKey()
	case !errors.As(err, &missing):
		return err
	case missing.PublicKey != nil:
		k.public = missing.PublicKey
	default: // an old PEM file does not contain it in the clear
		k.public, _ = readPublicKey(k.path + ".pub")
	}
	return nil
}

// sign asks for the passphrase where that is still needed. It blocks on the
// operator then.
func (k *keyFile) sign(ctx context.Context, a *asker, data []byte, algorithm string) (*ssh.Signature, error) {
	if err := k.unlock(ctx, a); err != nil {
		return nil, err
	}
	return k.signer.SignWithAlgorithm(rand.Reader, data, algorithm)
}

func (k *keyFile) unlock(ctx context.Context, a *asker) error {
	if k.signer != nil {
		return nil
	}
	if a.prompt == nil {
		return errNobodyToAsk
	}
	for range maxPassphrases {
		answer, err := a.ask(ctx, fmt.Sprintf("Passphrase of the key %s: ", k.path), true)
		if err != nil {
			return fmt.Errorf("ask for its passphrase: %w", err)
		}
		signer, err := parseKey(k.data, []byte(answer))
		if errors.Is(err, x509.IncorrectPasswordError) {
			continue
		}
		if err != nil {
			return err
		}
		return k.accept(signer, a.keys)
	}
	return errPassphrase
}

func (k *keyFile) accept(signer ssh.AlgorithmSigner, keys *Keys) error {
	if k.public != nil && !sameKey(k.public, signer.PublicKey()) {
		return errNotTheSameKey
	}
	k.signer, k.public = signer, signer.PublicKey()
	keys.put(k.path, signer)
	return nil
}

// parseKey parses a private key of any format that ssh-keygen writes.
func parseKey(data, passphrase []byte) (ssh.AlgorithmSigner, error) {
	var signer ssh.Signer
	var err error
	if passphrase == nil {
		signer, err = ssh.ParsePrivateKey(data)
	} else {
		signer, err = ssh.ParsePrivateKeyWithPassphrase(data, passphrase)
	}
	if err != nil {
		return nil, err
	}
	as, ok := signer.(ssh.AlgorithmSigner)
	if !ok {
		return nil, fmt.Errorf("keys of type %s cannot be used from a file", signer.PublicKey().Type())
	}
	return as, nil
}

func readPublicKey(path string) (ssh.PublicKey, error) {
	data, _, err := readSmall(path)
	if err != nil {
		return nil, err
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(data)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return key, nil
}

func readCertificate(path string) (*ssh.Certificate, error) {
	key, err := readPublicKey(path)
	if err != nil {
		return nil, err
	}
	cert, ok := key.(*ssh.Certificate)
	if !ok {
		return nil, fmt.Errorf("read %s: a key, not a certificate", path)
	}
	return cert, nil
}

// readSmall reads a regular file of at most maxKeyFile.
func readSmall(path string) ([]byte, os.FileInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxKeyFile {
		return nil, nil, fmt.Errorf("read %s: not a file of a sensible size", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	return data, info, err
}

func sameKey(a, b ssh.PublicKey) bool { return string(a.Marshal()) == string(b.Marshal()) }

// plainKey is the key inside of a certificate, or the key itself.
func plainKey(k ssh.PublicKey) ssh.PublicKey {
	if cert, ok := k.(*ssh.Certificate); ok {
		return cert.Key
	}
	return k
}
