package remote

import (
	"errors"
	"fmt"
	"strings"
)

const maxCommand = 128 << 10 // what Linux takes as one argument of sh -c

const plainChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./=:,+@%"

// shellQuote makes s one word for any shell that a login may have: quotes
// and backslashes go in double quotes, because fish, unlike sh, knows
// escapes within single ones.
func shellQuote(s string) string {
	if s != "" && strings.Trim(s, plainChars) == "" && s[0] != '=' && s[0] != '%' {
		return s
	}
	return "'" + strings.NewReplacer(`'`, `'"'"'`, `\`, `'"\\"'`).Replace(s) + "'"
}

func shellCommand(argv ...string) string {
	quoted := make([]string, len(argv))
	for i, arg := range argv {
		quoted[i] = shellQuote(arg)
	}
	return strings.Join(quoted, " ")
}

// commandLine is argv for the login shell on the host.
func commandLine(argv []string) (string, error) {
	if len(argv) == 0 || argv[0] == "" {
		return "", errors.New("no command")
	}
	line := shellCommand(argv...)
	switch {
	case strings.Contains(line, "\x00"):
		return "", errors.New("an argument contains a NUL byte")
	case len(line) > maxCommand:
		return "", fmt.Errorf("the command is longer than %d bytes", maxCommand)
	}
	return line, nil
}

// printable takes out what a host could use to draw on the terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return -1
		}
		return r
	}, text)
}
