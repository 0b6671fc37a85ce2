package release

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"time"
)

var (
	vTagForm   = regexp.MustCompile(`^v[0-9]`)
	notVersion = regexp.MustCompile(`[^0-9A-Za-z._+-]+`)
)

// GitVersion makes a version of what git says about dir: the tag (v1.2.3 becomes 1.2.3), the last tag with the distance and the commit,
// or the commit alone; "-dirty" follows if there are changes or new files that git does not ignore.
// It waits for git and leaves the repository as it is.
func GitVersion(ctx context.Context, dir string) (string, error) {
	described, err := git(ctx, dir, "describe", "--tags", "--always", "--abbrev=10")
	if err != nil {
		return "", fmt.Errorf("version: %w: give one with --version", err)
	}
	status, err := git(ctx, dir, "status", "--porcelain")
	if err != nil {
		return "", fmt.Errorf("version: %w: give one with --version", err)
	}
	v := cleanVersion(described)
	if status != "" {
		v += dirtySuffix
	}
	if err := CheckVersion(v); err != nil {
		return "", fmt.Errorf("version: git says %s: %w: give another one with --version", quote(described), err)
	}
	return v, nil
}

// cleanVersion makes a version of a tag, which may have other characters (release/1.2).
func cleanVersion(tag string) string {
	if vTagForm.MatchString(tag) {
		tag = tag[1:]
	}
	return notVersion.ReplaceAllString(tag, "-")
}

func git(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = dir
	// No lock on the index: packing must not disturb a commit that is being made. No translations: we read what it says.
	cmd.Env = append(os.Environ(), "GIT_OPTIONAL_LOCKS=0", "LC_ALL=C")
	cmd.WaitDelay = time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err != nil {
		return "", gitError(dir, err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}

func gitError(dir string, err error, stderr string) error {
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return errors.New("git is not installed")
	case strings.Contains(stderr, "not a git repository"):
		return fmt.Errorf("%s is in no git repository", dir)
	case strings.Contains(stderr, "Not a valid object name HEAD"):
		return fmt.Errorf("the git repository of %s has no commit yet", dir)
	case stderr != "":
		line, _, _ := strings.Cut(stderr, "\n")
		return fmt.Errorf("git in %s: %s", dir, quote(line))
	}
	return fmt.Errorf("git in %s: %w", dir, err)
}
