package remote

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"
	xknownhosts "golang.org/x/crypto/ssh/knownhosts"
)

const maxKnownHosts = 64 << 20

// goodHostKeys are the algorithms that we offer for keys that are no
// certificates, in the order of ssh: the operator sees the same fingerprint.
var goodHostKeys = []string{
	ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521,
	ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256,
}

// hostKeys decides whether a host is the one that known_hosts means.
type hostKeys struct {
	host  Host
	db    *knownhosts.HostKeyDB
	via   []Host            // for a hop: the hops before it
	names map[string]string // temporary copy of a known_hosts file → the file
	// what check said, for whoever gets the error of x/crypto
	sure    bool
	verdict error
}

// openHostKeys reads the known_hosts files; those that are not there count
// as empty. Lines that x/crypto cannot read are left out, as ssh does.
func openHostKeys(h Host, via []Host) (*hostKeys, error) {
	k := &hostKeys{host: h, via: via, names: map[string]string{}}
	var files []string
	for _, path := range h.KnownHosts {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Size() <= maxKnownHosts {
			files = append(files, path)
		}
	}
	db, err := knownhosts.NewDB(files...)
	if err != nil {
		db, err = k.withoutBadLines(files)
	}
	if err != nil {
		return nil, fmt.Errorf("read known_hosts: %w", err)
	}
	k.db = db
	return k, nil
}

// withoutBadLines reads copies in which bad lines are empty, so that one of
// them, say a key type of tomorrow, does not shut out all hosts.
func (k *hostKeys) withoutBadLines(files []string) (*knownhosts.HostKeyDB, error) {
	dir, err := os.MkdirTemp("", "hotdeploy-known-hosts-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	var copies []string
	for i, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		name := filepath.Join(dir, strconv.Itoa(i))
		if err := os.WriteFile(name, blankBadLines(data), 0o600); err != nil {
			return nil, err
		}
		k.names[name] = path
		copies = append(copies, name)
	}
	return knownhosts.NewDB(copies...)
}

// blankBadLines keeps the numbers of the lines.
func blankBadLines(data []byte) []byte {
	var out bytes.Buffer
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if goodLine(lines.Bytes()) {
			out.Write(lines.Bytes())
		}
		out.WriteByte('\n')
	}
	return out.Bytes()
}

func goodLine(line []byte) bool {
	_, hosts, _, _, _, err := ssh.ParseKnownHosts(append(bytes.Clone(line), '\n'))
	if err != nil || len(line) >= bufio.MaxScanTokenSize {
		return false
	}
	if !strings.HasPrefix(hosts[0], "|") {
		return true
	}
	parts := strings.Split(hosts[0], "|")
	return len(parts) == 4 && parts[1] == "1"
}

// address is what is looked up in known_hosts. An alias is looked up without
// the port, which is to say with the default one.
func (k *hostKeys) address() string {
	if k.host.HostKeyAlias != "" {
		return net.JoinHostPort(k.host.HostKeyAlias, "22")
	}
	return net.JoinHostPort(strings.ToLower(k.host.Name), strconv.Itoa(k.host.Port))
}

// algorithms puts those first that known_hosts has a key for, so that the
// server shows that key. The others follow, so that a host that has changed
// its kind of key is recognised and not merely incompatible; certificates
// only where an authority is known.
func (k *hostKeys) algorithms() []string {
	supported := ssh.SupportedAlgorithms().HostKeys
	list := k.db.HostKeyAlgorithms(k.address())
	for _, a := range goodHostKeys {
		if !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return slices.DeleteFunc(list, func(a string) bool {
		return !slices.Contains(supported, a) || len(k.host.HostKeys) > 0 && !slices.Contains(k.host.HostKeys, a)
	})
}

// check is the ssh.HostKeyCallback. The address that x/crypto was given does
// not matter: we look up our own.
func (k *hostKeys) check(_ string, _ net.Addr, key ssh.PublicKey) error {
	k.verdict = k.judge(key)
	k.sure = k.verdict == nil
	return k.verdict
}

func (k *hostKeys) judge(key ssh.PublicKey) error {
	err := k.db.HostKeyCallback()(k.address(), &net.TCPAddr{IP: net.IPv4zero}, key)
	var keyErr *xknownhosts.KeyError
	var revoked *xknownhosts.RevokedError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &revoked):
		return k.refused(key, fmt.Errorf("it is revoked by %s:%d", k.file(revoked.Revoked.Filename), revoked.Revoked.Line))
	case !errors.As(err, &keyErr):
		return k.refused(key, err)
	}
	if want, ok := k.plainKnown(keyErr.Want, key); ok {
		return k.changed(key, want)
	}
	return k.unknown(key)
}

// plainKnown finds the key that known_hosts has in place of the one shown,
// of the same type where there is one. An authority's key is no such key.
func (k *hostKeys) plainKnown(want []xknownhosts.KnownKey, shown ssh.PublicKey) (xknownhosts.KnownKey, bool) {
	isCA := map[string]bool{}
	for _, known := range k.db.HostKeys(k.address()) {
		if known.Cert {
			isCA[string(known.Marshal())] = true
		}
	}
	want = slices.DeleteFunc(slices.Clone(want), func(w xknownhosts.KnownKey) bool { return isCA[string(w.Key.Marshal())] })
	if len(want) == 0 {
		return xknownhosts.KnownKey{}, false
	}
	same := func(w xknownhosts.KnownKey) bool { return w.Key.Type() == shown.Type() }
	return want[max(0, slices.IndexFunc(want, same))], true
}

func (k *hostKeys) file(name string) string {
	if original, ok := k.names[name]; ok {
		return original
	}
	return name
}

func (k *hostKeys) refused(key ssh.PublicKey, err error) error {
	return &ErrHostKeyRefused{Host: k.name(), Fingerprint: ssh.FingerprintSHA256(plainKey(key)), KeyType: key.Type(), Err: err}
}

func (k *hostKeys) changed(key ssh.PublicKey, known xknownhosts.KnownKey) error {
	file := k.file(known.Filename)
	return &ErrHostKeyChanged{
		Host: k.name(), Fingerprint: ssh.FingerprintSHA256(key), KeyType: key.Type(),
		Known: ssh.FingerprintSHA256(known.Key), File: file, Line: known.Line,
		Command: shellCommand("ssh-keygen", "-f", file, "-R", k.name()),
	}
}

func (k *hostKeys) unknown(key ssh.PublicKey) error {
	e := &ErrUnknownHostKey{Host: k.name(), Fingerprint: ssh.FingerprintSHA256(key), KeyType: key.Type()}
	if len(k.host.KnownHosts) > 0 {
		e.KnownHostsFile = k.host.KnownHosts[0]
	}
	e.Command = k.acceptCommand(key, e.KnownHostsFile)
	return e
}

func (k *hostKeys) name() string { return knownhosts.Normalize(k.address()) }

// acceptCommand is ssh itself, told to ask: it shows the fingerprint and
// writes the key down only after a yes, through the same hops, in the form
// (hashed or not) and the file of the configuration. The algorithm is fixed
// so that it shows the very key that we saw.
func (k *hostKeys) acceptCommand(key ssh.PublicKey, file string) string {
	algorithm := key.Type()
	if algorithm == ssh.KeyAlgoRSA {
		algorithm = ssh.KeyAlgoRSASHA512
	}
	args := []string{"ssh"}
	if k.host.ConfigFile != "" {
		args = append(args, "-F", k.host.ConfigFile)
	}
	args = append(args, "-o", "StrictHostKeyChecking=ask", "-o", "HostKeyAlgorithms="+algorithm)
	if k.host.Destination == "" && file != "" { // made by hand: no configuration knows the file
		args = append(args, "-o", "UserKnownHostsFile="+file)
	}
	if len(k.via) > 0 {
		var hops []string
		for _, hop := range k.via {
			hops = append(hops, hop.String())
		}
		args = append(args, "-J", strings.Join(hops, ","))
	}
	return shellCommand(append(args, k.host.sshArgs()...)...)
}

// sshArgs is the destination in the words of ssh, which knows no host:port.
func (h Host) sshArgs() []string {
	d, err := parseDestination(h.Destination)
	if err != nil {
		d = destination{user: h.User, host: h.Name, port: h.Port}
	}
	var args []string
	if d.port != 0 {
		args = append(args, "-p", strconv.Itoa(d.port))
	}
	if d.user != "" {
		args = append(args, "-l", d.user)
	}
	return append(args, d.host, "true")
}
