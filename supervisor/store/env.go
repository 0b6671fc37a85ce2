package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// Env returns the environment of a generation: base, over it the release's [run].env, over it the host's env file, since
// the file is for what differs from host to host, and an operator can change it without a new release. Each name is there
// once, sorted. The file may be absent; warnings are for the log. Neither errors nor warnings contain a value.
func (s *Store) Env(base []string, spec release.Spec) (env, warnings []string, err error) {
	host, warnings, err := s.hostEnv()
	if err != nil {
		return nil, nil, err
	}
	merged := map[string]string{}
	for _, kv := range base {
		if name, value, ok := strings.Cut(kv, "="); ok && name != "" {
			merged[name] = value
		}
	}
	maps.Copy(merged, spec.Run.Env)
	maps.Copy(merged, host)
	env = make([]string, 0, len(merged))
	for _, name := range slices.Sorted(maps.Keys(merged)) {
		env = append(env, name+"="+merged[name])
	}
	return env, warnings, nil
}

func (s *Store) hostEnv() (vars map[string]string, warnings []string, err error) {
	f, fi, err := openRegular(s.root, envFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, nil, fmt.Errorf("read the environment: %w (give it to the service's user: chown --reference=%s %s)",
			err, s.path(stateDir), s.path(envFile))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read the environment %s: %w", s.path(envFile), err)
	}
	defer f.Close()
	if mode := fi.Mode().Perm(); mode&^0o640 != 0 {
		warnings = append(warnings, fmt.Sprintf("%s has mode %#o: others may read or change it; type  chmod 0600 %[1]s",
			s.path(envFile), mode))
	}
	b, err := io.ReadAll(io.LimitReader(f, maxEnvBytes+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read the environment: %w", err)
	}
	if len(b) > maxEnvBytes {
		return nil, nil, fmt.Errorf("read the environment: %s is larger than %s", s.path(envFile), human(maxEnvBytes))
	}
	vars, err = parseEnv(string(b))
	if err != nil {
		return nil, nil, fmt.Errorf("%s, %w", s.path(envFile), err)
	}
	return vars, warnings, nil
}

// parseEnv reads lines NAME=value. It follows what a shell and systemd would both make of a line, and refuses what they
// read differently:
//   - a line that begins with # is a comment; "export " before a name is let through;
//   - 'value' is taken as it is; in "value" a backslash takes the meaning from one of \ " $ and the backquote;
//   - a value without quotes goes to the end of the line, without the spaces around it. A # after a space must be quoted: it
//     could be a comment or not;
//   - nothing is expanded; of a name that comes twice the last one counts.
func parseEnv(text string) (map[string]string, error) {
	vars := map[string]string{}
	n := 0
	for line := range strings.Lines(text) {
		n++
		name, value, err := parseEnvLine(strings.TrimSpace(line))
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if name != "" {
			vars[name] = value
		}
	}
	return vars, nil
}

func parseEnvLine(line string) (name, value string, err error) {
	if line == "" || line[0] == '#' {
		return "", "", nil
	}
	if rest, ok := strings.CutPrefix(line, "export"); ok && rest != "" && (rest[0] == ' ' || rest[0] == '\t') {
		line = strings.TrimLeft(rest, " \t")
	}
	name, value, ok := strings.Cut(line, "=")
	switch {
	case strings.ContainsRune(line, 0):
		return "", "", errors.New("there is a NUL byte in it")
	case !ok:
		return "", "", errors.New("there is no = in it")
	case !okEnvName(name):
		return "", "", errors.New("before the = must be a name of letters, digits and _, with no space after it")
	}
	value, err = parseEnvValue(value)
	return name, value, err
}

func okEnvName(name string) bool {
	for i, c := range []byte(name) {
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}

func parseEnvValue(raw string) (string, error) {
	v := strings.TrimLeft(raw, " \t")
	switch {
	case v == "":
		return "", nil
	case v[0] == '\'':
		end := strings.IndexByte(v[1:], '\'')
		if end < 0 {
			return "", errors.New("the closing ' is missing (a value is one line)")
		}
		return v[1 : 1+end], onlyComment(v[2+end:])
	case v[0] == '"':
		return parseDoubleQuoted(v[1:])
	case strings.Contains(raw, " #") || strings.Contains(raw, "\t#"):
		return "", errors.New("there is a # after a space: put the value in quotes, to say whether the rest is a comment")
	}
	return v, nil
}

func parseDoubleQuoted(v string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(v); i++ {
		switch {
		case v[i] == '"':
			return b.String(), onlyComment(v[i+1:])
		case v[i] == '\\' && i+1 < len(v) && strings.IndexByte("\\\"$`", v[i+1]) >= 0:
			i++
		}
		b.WriteByte(v[i])
	}
	return "", errors.New(`the closing " is missing (a value is one line)`)
}

func onlyComment(rest string) error {
	if t := strings.TrimLeft(rest, " \t"); t == "" || (t[0] == '#' && len(t) < len(rest)) {
		return nil
	}
	return errors.New("something follows the closing quote")
}
