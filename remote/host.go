package remote

import (
	"context"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"
)

const (
	defaultConnectTimeout = 15 * time.Second
	defaultKeepAlive      = 2 * time.Second
	defaultKeepAliveMax   = 3
)

// Prompt asks the operator for one line. A secret one is not shown while it
// is typed. It returns when ctx ends.
type Prompt func(ctx context.Context, prompt string, secret bool) (string, error)

// Options are the operator's wishes that no ssh configuration knows.
type Options struct {
	// ConfigFile is read instead of ~/.ssh/config, as with ssh -F.
	ConfigFile string
	// Prompt asks for passphrases and passwords; nil means that there is
	// nobody to ask, and keys that need a passphrase are skipped.
	Prompt Prompt
	// Keys remembers passphrases between dials; nil means within one.
	Keys *Keys
	// KeepAlive is how long the line may be silent before it is tried, and
	// how often then; zero means 2 s, or less if ssh's configuration does.
	KeepAlive time.Duration
	// KeepAliveMax tries without any sign of life mean that the line is
	// lost; zero means 3.
	KeepAliveMax int
	// ConnectTimeout limits each hop's connect, and each hop's login less
	// the time that the operator thinks; zero means what ssh's configuration
	// says, or 15 s.
	ConnectTimeout time.Duration
}

// Host is what a destination means: where to connect, through what, as
// whom, and what to trust. [Resolve] makes one; by hand, Name, User, Port
// and KnownHosts are the least that [Dial] needs.
type Host struct {
	Destination string // what the operator typed
	Alias       string // the host in it
	Name        string // what is dialled
	Port        int
	User        string
	Family      string // "tcp", "tcp4" or "tcp6"; empty means "tcp"

	Jumps        []Host // hops on the way, the nearest first
	ProxyCommand string // for sh -c; its streams are the connection

	IdentityFiles    []string
	CertificateFiles []string
	IdentitiesOnly   bool   // offer nothing that is not in the two above
	Agent            string // socket of the ssh-agent; empty means none
	NoPublicKey      bool
	NoPassword       bool
	NoInteractive    bool // keyboard-interactive

	KnownHosts   []string // files, those of the user first
	HostKeyAlias string   // the name to look up there instead of Name
	HostKeys     []string // algorithms that the configuration narrows down to; empty means all good ones
	Ciphers      []string // in the order of the configuration; empty means the fastest first

	ConnectTimeout time.Duration // zero: not configured
	KeepAlive      time.Duration // zero: not configured
	ConfigFile     string        // what ssh -F needs to see the same
}

// Addr is the host:port that is dialled.
func (h Host) Addr() string { return net.JoinHostPort(h.Name, strconv.Itoa(h.Port)) }

// String is the destination as it was typed.
func (h Host) String() string {
	if h.Destination != "" {
		return h.Destination
	}
	return h.Addr()
}

// plainHost is what a destination means where there is no ssh to ask.
func plainHost(d destination) Host {
	h := Host{Alias: d.host, Name: d.host, Port: d.port, User: d.user, Agent: os.Getenv("SSH_AUTH_SOCK")}
	if h.Port == 0 {
		h.Port = 22
	}
	if h.User == "" {
		h.User = localUser()
	}
	home, err := os.UserHomeDir() // no ssh has a word in this: ~ is $HOME, as for other programs
	if err != nil {
		home = homeDir()
	}
	for _, name := range []string{"id_ed25519", "id_ecdsa", "id_rsa"} {
		h.IdentityFiles = append(h.IdentityFiles, filepath.Join(home, ".ssh", name))
	}
	h.KnownHosts = []string{
		filepath.Join(home, ".ssh", "known_hosts"), filepath.Join(home, ".ssh", "known_hosts2"),
		"/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2",
	}
	return h
}

func localUser() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return os.Getenv("USER")
}

// homeDir is what ssh takes ~ for: the home of the password database, not
// $HOME.
func homeDir() string {
	if u, err := user.LookupId(strconv.Itoa(os.Getuid())); err == nil && u.HomeDir != "" {
		return u.HomeDir
	}
	home, _ := os.UserHomeDir()
	return home
}
