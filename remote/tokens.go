package remote

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// tokens are what the %-tokens of ssh_config(5) stand for. ssh -G prints
// most values without expanding them.
type tokens map[byte]string

func (h *Host) tokens(proxyJump string) tokens {
	local, _ := os.Hostname()
	short, _, _ := strings.Cut(local, ".")
	port := strconv.Itoa(h.Port)
	alias := h.HostKeyAlias
	if alias == "" {
		alias = h.Alias
	}
	// not for security: it is how ssh names files
	sum := sha1.Sum([]byte(local + h.Name + port + h.User + proxyJump))
	return tokens{
		'%': "%", 'C': hex.EncodeToString(sum[:]), 'd': homeDir(), 'h': h.Name, 'i': strconv.Itoa(os.Getuid()),
		'j': proxyJump, 'k': alias, 'L': short, 'l': local, 'n': h.Alias, 'p': port, 'r': h.User, 'u': localUser(),
	}
}

// expand replaces the tokens in text.
func (t tokens) expand(text string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '%' {
			b.WriteByte(text[i])
			continue
		}
		if i++; i == len(text) {
			return "", fmt.Errorf("%q ends in %%", clip(text, 80))
		}
		value, ok := t[text[i]]
		if !ok {
			return "", fmt.Errorf("unknown token %%%c in %q", text[i], clip(text, 80))
		}
		b.WriteString(value)
	}
	return b.String(), nil
}

// path also expands ${VARIABLES} and a ~ at the front.
func (t tokens) path(text string) (string, error) {
	text, err := expandEnv(text)
	if err != nil {
		return "", err
	}
	if text, err = t.expand(text); err != nil {
		return "", err
	}
	if text == "~" {
		return homeDir(), nil
	}
	if rest, ok := strings.CutPrefix(text, "~/"); ok {
		return filepath.Join(homeDir(), rest), nil
	}
	return text, nil
}

// agent is the socket that IdentityAgent means.
func (t tokens) agent(value string, none bool) (string, error) {
	switch {
	case none:
		return "", nil
	case value == "" || value == "SSH_AUTH_SOCK":
		return os.Getenv("SSH_AUTH_SOCK"), nil
	case strings.HasPrefix(value, "$") && !strings.HasPrefix(value, "${"):
		return os.Getenv(value[1:]), nil
	}
	return t.path(value)
}

// expandEnv replaces ${VARIABLES}; what is in them is not expanded again.
func expandEnv(text string) (string, error) {
	var b strings.Builder
	for {
		before, rest, ok := strings.Cut(text, "${")
		b.WriteString(before)
		if !ok {
			return b.String(), nil
		}
		name, after, ok := strings.Cut(rest, "}")
		if !ok {
			return "", fmt.Errorf("${ without } in %q", clip(text, 80))
		}
		value, ok := os.LookupEnv(name)
		if !ok {
			return "", fmt.Errorf("the environment variable %s is not set, but ssh's configuration uses it", clip(name, 80))
		}
		b.WriteString(value)
		text = after
	}
}
