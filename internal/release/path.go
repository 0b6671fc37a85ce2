package release

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits on one path, narrow enough that a hostile manifest cannot make its own checking slow.
const (
	maxNameBytes = 255 // of one element: what file systems take
	maxDepth     = 64  // elements
)

// checkPath is the rule for a path inside a release that somebody has written down: that of a file, and nothing that another
// system or a terminal would read differently.
func checkPath(p string) error {
	if err := checkText(p, MaxPathBytes); err != nil {
		return err
	}
	return checkName(p)
}

// checkName is the rule for the path of every file of a release: relative, clean, slash-separated. Its elements are what the
// kernel takes. Whoever shows it to people uses [Shown].
func checkName(p string) error {
	if err := checkBytes(p); err != nil {
		return err
	}
	switch {
	case p == "":
		return errors.New("is empty")
	case path.IsAbs(p):
		return errors.New("is absolute: it must be relative to the release")
	case p == ".." || strings.HasPrefix(p, "../") || strings.Contains(p, "/../") || strings.HasSuffix(p, "/.."):
		return errors.New(`has ".." in it`)
	case p == ".":
		return errors.New("is the release itself: name something in it")
	case path.Clean(p) != p:
		return fmt.Errorf("is not clean: write %s", quote(path.Clean(p)))
	}
	return checkElements(p)
}

func checkElements(p string) error {
	elements := strings.Split(p, "/")
	if len(elements) > maxDepth {
		return fmt.Errorf("is more than %d directories deep", maxDepth)
	}
	for _, e := range elements {
		if len(e) > maxNameBytes {
			return fmt.Errorf("has a name longer than %d bytes", maxNameBytes)
		}
	}
	return nil
}

// checkLink is the rule for a symlink's target as text; where it leads is for the tree to say.
func checkLink(target string) error {
	if err := checkBytes(target); err != nil {
		return err
	}
	if path.IsAbs(target) {
		return errors.New("is absolute: it must be relative and stay inside the release")
	}
	return nil
}

func checkBytes(s string) error {
	switch {
	case len(s) > MaxPathBytes:
		return fmt.Errorf("is longer than %d bytes", MaxPathBytes)
	case strings.ContainsRune(s, 0):
		return errors.New("has a NUL byte in it")
	}
	return nil
}

// Shown is a path fit for a message: quoted if a terminal or a log would not show it as it is.
func Shown(p string) string {
	if q := strconv.Quote(p); q != `"`+p+`"` {
		return q
	}
	return p
}

func checkText(s string, most int) error {
	switch {
	case len(s) > most:
		return fmt.Errorf("is longer than %d bytes", most)
	case !utf8.ValidString(s):
		return errors.New("is not valid UTF-8")
	case strings.ContainsRune(s, 0):
		return errors.New("has a NUL byte in it")
	case strings.ContainsFunc(s, unicode.IsControl):
		return errors.New("has a control character in it")
	case strings.ContainsRune(s, '\\'):
		return errors.New("has a backslash in it")
	}
	return nil
}

// isInside reports whether a start command names a file of the release ("bin/chat", "./run.sh"), not something on the
// host: a bare name, or an absolute path.
func isInside(command string) bool { return strings.Contains(command, "/") && !path.IsAbs(command) }
