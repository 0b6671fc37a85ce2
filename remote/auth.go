package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"golang.org/x/crypto/ssh"
)

// asker asks the operator; the clock of the login stands still meanwhile.
type asker struct {
	prompt Prompt
	keys   *Keys
	clock  *patience
}

func (a *asker) ask(ctx context.Context, prompt string, secret bool) (string, error) {
	a.clock.pause()
	defer a.clock.resume()
	return a.prompt(ctx, prompt, secret)
}

// login is one attempt to be let in by one server. x/crypto calls it from
// one goroutine.
type login struct {
	ctx     context.Context // of the dial; everything here ends with it
	host    Host
	asker   *asker
	agent   *agentKeys // nil: none
	allowed []string
	tried   []string
	offers  []*offer
	skipped []KeyTried
}

// methods is what we can do. The agent is reached, and key files are read,
// when the server wants keys, and not before.
func (l *login) methods() []ssh.AuthMethod {
	var m []ssh.AuthMethod
	if !l.host.NoPublicKey {
		m = append(m, ssh.PublicKeysCallback(l.signers))
	}
	if l.asker.prompt == nil {
		return m
	}
	if !l.host.NoInteractive {
		m = append(m, ssh.RetryableAuthMethod(ssh.KeyboardInteractive(l.challenge), maxPassphrases))
	}
	if !l.host.NoPassword {
		m = append(m, ssh.RetryableAuthMethod(ssh.PasswordCallback(l.password), maxPassphrases))
	}
	return m
}

// note learns what the server allows; which method comes next is left to
// the order of methods.
func (l *login) note(c *ssh.ClientAuthContext) (ssh.AuthMethod, error) {
	l.allowed, l.tried = c.AllowedMethods, c.TriedMethods
	return nil, nil
}

func (l *login) close() {
	if l.agent != nil {
		l.agent.close()
	}
}

func (l *login) password() (string, error) {
	return l.asker.ask(l.ctx, fmt.Sprintf("Password of %s@%s: ", l.host.User, l.host.Name), true)
}

func (l *login) challenge(name, instruction string, questions []string, echos []bool) ([]string, error) {
	answers := make([]string, len(questions))
	for i, q := range questions {
		prompt := fmt.Sprintf("(%s@%s) %s", l.host.User, l.host.Name, printable(clip(q, 200)))
		var err error
		if answers[i], err = l.asker.ask(l.ctx, prompt, !echos[i]); err != nil {
			return nil, err
		}
	}
	return answers, nil
}

// failed is the error of a login that the server refused.
func (l *login) failed(err error) *ErrAuth {
	e := &ErrAuth{Host: l.host.String(), User: l.host.User, Methods: l.allowed, Err: err}
	for _, m := range l.tried {
		if m != "none" && !slices.Contains(e.Tried, m) {
			e.Tried = append(e.Tried, m)
		}
	}
	for _, o := range l.offers {
		if o.result != "" {
			e.Keys = append(e.Keys, o.tried())
		}
	}
	e.Keys = append(e.Keys, l.skipped...)
	return e
}

// signers makes the list of keys to offer, in the order of ssh: certificates,
// keys of the configuration that the agent has, other keys of the agent, key
// files. Those that need a passphrase come last, so that nobody is asked in
// vain.
func (l *login) signers() ([]ssh.Signer, error) {
	files := l.readKeys()
	if l.host.Agent != "" && l.agent == nil {
		var err error
		if l.agent, err = openAgent(l.ctx, l.host.Agent); err != nil {
			l.skip("agent", err)
		}
	}
	l.offerCertificates(files)
	l.offerAgent(files)
	l.offerFiles(files)
	signers := make([]ssh.Signer, len(l.offers))
	for i, o := range l.offers {
		signers[i] = o
	}
	return signers, nil
}

func (l *login) skip(source string, err error) {
	l.skipped = append(l.skipped, KeyTried{Source: source, Result: "not used: " + err.Error()})
}

func (l *login) readKeys() []*keyFile {
	var files []*keyFile
	for _, path := range l.host.IdentityFiles {
		k, err := readKeyFile(path, l.asker.keys)
		switch {
		case err == nil:
			files = append(files, k)
		case errors.Is(err, fs.ErrNotExist):
			// the defaults name files that most people do not have; but the
			// agent may hold the key of a .pub that is there
			if public, err := readPublicKey(path + ".pub"); err == nil {
				files = append(files, &keyFile{path: path, public: public})
			}
		default:
			l.skip(path, err)
		}
	}
	return files
}

// agentKey finds a key in the agent: the very same, or the same key within
// or without a certificate.
func (l *login) agentKey(public ssh.PublicKey) (agentKey, bool) {
	if l.agent == nil {
		return agentKey{}, false
	}
	for _, same := range []func(agentKey) bool{
		func(k agentKey) bool { return sameKey(k.public, public) },
		func(k agentKey) bool { return sameKey(k.public, plainKey(public)) },
	} {
		if i := slices.IndexFunc(l.agent.keys, same); i >= 0 {
			return l.agent.keys[i], true
		}
	}
	return agentKey{}, false
}

func (l *login) offerCertificates(files []*keyFile) {
	paths := slices.Clone(l.host.CertificateFiles)
	for _, path := range l.host.IdentityFiles {
		paths = append(paths, path+"-cert.pub")
	}
	for i, path := range paths {
		cert, err := readCertificate(path)
		if err != nil {
			if i < len(l.host.CertificateFiles) { // asked for by name
				l.skip(path, err)
			}
			continue
		}
		if k, ok := l.agentKey(cert); ok {
			l.offer(path, cert, l.agentSign(k))
			continue
		}
		mine := func(k *keyFile) bool { return k.data != nil && k.public != nil && sameKey(k.public, cert.Key) }
		if i := slices.IndexFunc(files, mine); i >= 0 {
			l.offer(path, cert, l.fileSign(files[i]))
		} else if i < len(l.host.CertificateFiles) {
			l.skip(path, errors.New("the private key of this certificate is neither in a file nor in the agent"))
		}
	}
}

func (l *login) offerAgent(files []*keyFile) {
	if l.agent == nil {
		return
	}
	for _, f := range files {
		if f.public == nil {
			continue
		}
		if k, ok := l.agentKey(f.public); ok && sameKey(k.public, f.public) {
			l.offer("agent", k.public, l.agentSign(k))
		}
	}
	if l.host.IdentitiesOnly {
		return
	}
	for _, k := range l.agent.keys {
		l.offer("agent", k.public, l.agentSign(k))
	}
}

func (l *login) offerFiles(files []*keyFile) {
	for _, needsPassphrase := range []bool{false, true} {
		for _, f := range files {
			if f.data == nil || (f.signer == nil) != needsPassphrase {
				continue
			}
			if f.public == nil || (needsPassphrase && l.asker.prompt == nil) {
				if err := f.unlock(l.ctx, l.asker); err != nil {
					l.skip(f.path, err)
					continue
				}
			}
			l.offer(f.path, f.public, l.fileSign(f))
		}
	}
}

type signFunc func(data []byte, algorithm string) (*ssh.Signature, error)

func (l *login) agentSign(k agentKey) signFunc {
	return func(data []byte, algorithm string) (*ssh.Signature, error) {
		l.asker.clock.pause() // the agent may ask for a touch
		defer l.asker.clock.resume()
		return k.signer.SignWithAlgorithm(nil, data, algorithm)
	}
}

func (l *login) fileSign(f *keyFile) signFunc {
	return func(data []byte, algorithm string) (*ssh.Signature, error) {
		return f.sign(l.ctx, l.asker, data, algorithm)
	}
}

// offer adds a key to the list, once.
func (l *login) offer(source string, public ssh.PublicKey, sign signFunc) {
	if !slices.ContainsFunc(l.offers, func(o *offer) bool { return sameKey(o.public, public) }) {
		l.offers = append(l.offers, &offer{source: source, public: public, signer: sign})
	}
}

// offer is one key in the hands of x/crypto. It keeps track of how far it
// got: x/crypto asks for the public half when it shows it to the server, and
// for a signature when the server would take it.
type offer struct {
	source string
	public ssh.PublicKey
	signer signFunc
	result string // empty: never shown
}

func (o *offer) PublicKey() ssh.PublicKey {
	if o.result == "" {
		o.result = "refused by the server"
	}
	return o.public
}

func (o *offer) Sign(rand io.Reader, data []byte) (*ssh.Signature, error) {
	return o.SignWithAlgorithm(rand, data, "")
}

func (o *offer) SignWithAlgorithm(_ io.Reader, data []byte, algorithm string) (*ssh.Signature, error) {
	sig, err := o.signer(data, algorithm)
	if err != nil {
		o.result = err.Error()
		return nil, fmt.Errorf("sign with the key %s: %w", o.source, err)
	}
	o.result = "taken by the server, which wants more"
	return sig, nil
}

func (o *offer) tried() KeyTried {
	return KeyTried{Source: o.source, Fingerprint: ssh.FingerprintSHA256(plainKey(o.public)), KeyType: o.public.Type(), Result: o.result}
}
