package remote

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	maxConfigOutput = 1 << 20
	maxConfigLine   = 64 << 10
	maxConfigValues = 256 // of one setting
	configTimeout   = 30 * time.Second
	maxHops         = 8
)

// Resolve finds out what a destination means to the operator's own ssh, by
// asking it (ssh -G), so that Match, Include and the rest behave exactly as
// they do there. Without an ssh it takes the defaults. A hop of ProxyJump is
// resolved in the same way. It connects to nothing, but ssh may: for names
// to canonicalise, and for the commands of Match exec.
func Resolve(ctx context.Context, dest string, opts Options) (Host, error) {
	d, err := parseDestination(dest)
	if err != nil {
		return Host{}, err
	}
	program, err := exec.LookPath("ssh")
	if err != nil {
		if opts.ConfigFile != "" {
			return Host{}, fmt.Errorf("read %s: there is no ssh here to read it: %w", opts.ConfigFile, err)
		}
		h := plainHost(d)
		h.Destination = dest
		return h, nil
	}
	r := resolver{ssh: program, configFile: opts.ConfigFile}
	h, err := r.resolve(ctx, d)
	if err != nil {
		return Host{}, fmt.Errorf("resolve %s: %w", dest, err)
	}
	h.Destination = dest
	return h, nil
}

// resolver asks ssh about one destination and the hops on the way to it.
type resolver struct {
	ssh        string
	configFile string
	hops       int
}

func (r *resolver) resolve(ctx context.Context, d destination) (Host, error) {
	if r.hops++; r.hops > maxHops {
		return Host{}, fmt.Errorf("more than %d hops: does ProxyJump go in a circle?", maxHops)
	}
	out, err := r.ask(ctx, d)
	if err != nil {
		return Host{}, err
	}
	s, err := parseSettings(out)
	if err != nil {
		return Host{}, fmt.Errorf("read what ssh -G says: %w", err)
	}
	h, err := s.host(d, unconfigured(ctx, r.ssh))
	if err != nil {
		return Host{}, err
	}
	h.ConfigFile = r.configFile
	return h, r.addJumps(ctx, &h, s.first("proxyjump"))
}

// addJumps resolves a ProxyJump list. As in ssh, a hop's own ProxyJump
// counts for the first hop only: the way to the later ones is the list.
func (r *resolver) addJumps(ctx context.Context, h *Host, list string) error {
	if list == "" || list == "none" {
		return nil
	}
	for i, text := range strings.Split(list, ",") {
		text, err := h.tokens(list).expand(strings.TrimSpace(text))
		if err != nil {
			return fmt.Errorf("ProxyJump: %w", err)
		}
		d, err := parseDestination(text)
		if err != nil {
			return fmt.Errorf("ProxyJump: %w", err)
		}
		hop, err := r.resolve(ctx, d)
		if err != nil {
			return fmt.Errorf("ProxyJump %s: %w", text, err)
		}
		hop.Destination = text
		if i == 0 {
			h.Jumps = append(h.Jumps, hop.Jumps...)
		} else {
			hop.ProxyCommand = ""
		}
		hop.Jumps = nil
		h.Jumps = append(h.Jumps, hop)
	}
	return nil
}

func (r *resolver) ask(ctx context.Context, d destination) ([]byte, error) {
	args := []string{"-G"}
	if r.configFile != "" {
		args = append(args, "-F", r.configFile)
	}
	if d.port != 0 {
		args = append(args, "-p", strconv.Itoa(d.port))
	}
	if d.user != "" {
		args = append(args, "-l", d.user)
	}
	return askSSH(ctx, r.ssh, append(args, "--", d.host)...)
}

func askSSH(ctx context.Context, program string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, configTimeout)
	defer cancel()
	stdout, stderr := &limited{limit: maxConfigOutput}, &limited{limit: 4 << 10}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.WaitDelay = time.Second // a Match exec command may hold the pipes
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("ssh -G: %w", context.Cause(ctx))
	case err != nil:
		return nil, fmt.Errorf("ssh -G: %w: %s", err, oneLine(stderr.String()))
	case stdout.cut:
		return nil, fmt.Errorf("ssh -G says more than %d bytes", maxConfigOutput)
	}
	return stdout.Bytes(), nil
}

// lists are the algorithms in the words of ssh -G.
type lists struct{ ciphers, hostKeys string }

// unconfigured is what ssh says when nobody configured anything. Its order
// of ciphers suits ssh; x/crypto is faster with its own.
func unconfigured(ctx context.Context, program string) lists {
	unconfiguredMu.Lock()
	defer unconfiguredMu.Unlock()
	if known, ok := unconfiguredOf[program]; ok {
		return known
	}
	out, err := askSSH(ctx, program, "-G", "-F", os.DevNull, "--", "localhost")
	if err != nil {
		return lists{} // everything then counts as configured, which is slower and never wrong
	}
	s, err := parseSettings(out)
	if err != nil {
		return lists{}
	}
	unconfiguredOf[program] = lists{s.first("ciphers"), s.first("hostkeyalgorithms")}
	return unconfiguredOf[program]
}

var (
	unconfiguredMu sync.Mutex // protects the map; held while ssh is asked, so that it is asked once
	unconfiguredOf = map[string]lists{}
)

// settings is what ssh -G printed: lower-case names, each with its values.
type settings map[string][]string

func parseSettings(out []byte) (settings, error) {
	s := settings{}
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, maxConfigLine)
	for lines.Scan() {
		name, value, _ := strings.Cut(strings.TrimSpace(lines.Text()), " ")
		if name == "" {
			continue
		}
		name = strings.ToLower(name)
		if len(s[name]) == maxConfigValues {
			return nil, fmt.Errorf("more than %d values of %s", maxConfigValues, clip(name, 40))
		}
		s[name] = append(s[name], strings.TrimSpace(value))
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s settings) first(name string) string {
	if values := s[name]; len(values) > 0 && values[0] != "none" {
		return values[0]
	}
	return ""
}

func (s settings) yes(name string) bool { v := s.first(name); return v == "yes" || v == "true" }
func (s settings) no(name string) bool  { v := s.first(name); return v == "no" || v == "false" }

func (s settings) seconds(name string) time.Duration {
	n, err := strconv.ParseUint(s.first(name), 10, 31)
	if err != nil {
		return 0
	}
	return time.Duration(n) * time.Second
}

// host makes a Host of the settings; plain is what ssh says unconfigured.
func (s settings) host(d destination, plain lists) (Host, error) {
	h := Host{Alias: d.host, Name: s.first("hostname"), User: s.first("user"),
		HostKeyAlias:   s.first("hostkeyalias"),
		IdentitiesOnly: s.yes("identitiesonly"),
		NoPublicKey:    s.no("pubkeyauthentication"),
		NoPassword:     s.no("passwordauthentication") || s.yes("batchmode"),
		NoInteractive:  s.no("kbdinteractiveauthentication") || s.yes("batchmode"),
		ConnectTimeout: s.seconds("connecttimeout"),
		KeepAlive:      s.seconds("serveraliveinterval"),
	}
	port, err := strconv.ParseUint(s.first("port"), 10, 16)
	if err != nil || port == 0 {
		return h, fmt.Errorf("ssh -G names no port, but %q", clip(s.first("port"), 20))
	}
	h.Port = int(port)
	// a Host block can set them to anything, and ssh -G does not look
	if err := (destination{host: h.Name, user: h.User}).validate(); err != nil {
		return h, fmt.Errorf("HostName or User of the configuration: %w", err)
	}
	h.Family = map[string]string{"inet": "tcp4", "inet6": "tcp6"}[s.first("addressfamily")]
	supported := ssh.SupportedAlgorithms()
	h.Ciphers = configured(s.first("ciphers"), plain.ciphers, supported.Ciphers)
	h.HostKeys = configured(s.first("hostkeyalgorithms"), plain.hostKeys, supported.HostKeys)
	return h, s.addFiles(&h)
}

// configured is the list that somebody chose, as far as it is supported; it
// is empty where nobody did.
func configured(list, plain string, supported []string) []string {
	if list == plain {
		return nil
	}
	return slices.DeleteFunc(strings.Split(list, ","), func(a string) bool { return !slices.Contains(supported, a) })
}

// addFiles fills in what has ~ and %-tokens in it.
func (s settings) addFiles(h *Host) error {
	t := h.tokens(s.first("proxyjump"))
	var errs []error
	paths := func(values []string) (expanded []string) {
		for _, v := range values {
			p, err := t.path(v)
			errs = append(errs, err)
			if p != "" && v != "none" {
				expanded = append(expanded, p)
			}
		}
		return expanded
	}
	h.IdentityFiles = paths(s["identityfile"])
	h.CertificateFiles = paths(s["certificatefile"])
	for _, name := range []string{"userknownhostsfile", "globalknownhostsfile"} {
		h.KnownHosts = append(h.KnownHosts, paths(splitPaths(s.first(name)))...)
	}
	agent, err := t.agent(s.first("identityagent"), slices.Contains(s["identityagent"], "none"))
	errs = append(errs, err)
	h.Agent = agent
	if command := s.first("proxycommand"); command != "" {
		if s.yes("proxyusefdpass") {
			errs = append(errs, errors.New("ProxyUseFdpass is not supported"))
		}
		h.ProxyCommand, err = t.expand(command)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// splitPaths takes a list apart that ssh -G prints with spaces between the
// paths and without quotes around those that have spaces in them: a new
// path begins where a word does as absolute paths do.
func splitPaths(list string) (paths []string) {
	for word := range strings.FieldsSeq(list) {
		if len(paths) == 0 || strings.ContainsRune("/~$%", rune(word[0])) || word == "none" {
			paths = append(paths, word)
		} else {
			paths[len(paths)-1] += " " + word
		}
	}
	return paths
}
