package release

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// repository makes an empty git repository that knows nothing of the machine's settings.
func repository(t *testing.T) (dir string, run func(args ...string)) {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("git is not installed")
		}
		t.Skip("SKIPPED: git is not installed, so versions from git are not tested")
	}
	dir = t.TempDir()
	for _, name := range []string{"GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"} {
		t.Setenv(name, os.DevNull)
	}
	t.Setenv("GIT_CEILING_DIRECTORIES", filepath.Dir(dir))
	run = func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-c", "user.name=t", "-c", "user.email=t@example.com"}, args...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	run("init", "-q")
	return dir, run
}

func TestGitVersion(t *testing.T) {
	dir, run := repository(t)
	put(t, dir, map[string]string{"a": "1", ".gitignore": "bin/\n", "sub/b": ""})
	expect := func(form string) {
		t.Helper()
		for _, d := range []string{dir, filepath.Join(dir, "sub")} {
			v, err := GitVersion(context.Background(), d)
			if err != nil || !regexp.MustCompile("^"+form+"$").MatchString(v) {
				t.Errorf("got %q, %v; want %s", v, err, form)
			}
		}
	}
	run("add", ".")
	run("commit", "-q", "-m", "one")
	expect(`[0-9a-f]{10}`)
	run("tag", "v1.2.3")
	expect(`1\.2\.3`)
	put(t, dir, map[string]string{"bin/app": "ignored"})
	expect(`1\.2\.3`)
	put(t, dir, map[string]string{"new": ""})
	expect(`1\.2\.3-dirty`)
	run("add", ".")
	run("commit", "-q", "-m", "two")
	expect(`1\.2\.3-1-g[0-9a-f]{10}`)
	put(t, dir, map[string]string{"a": "2"})
	expect(`1\.2\.3-1-g[0-9a-f]{10}-dirty`)
	run("commit", "-q", "-a", "-m", "three")
	run("tag", "release/2.0_ä+x")
	expect(`release-2\.0_-\+x`)
}

func TestGitVersion_SaysWhatElseToDo(t *testing.T) {
	dir, run := repository(t)
	expect := func(ctx context.Context, dir string, want ...string) {
		t.Helper()
		v, err := GitVersion(ctx, dir)
		for _, w := range append(want, "give ", "--version") {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("got %q, %v; want %s", v, err, w)
			}
		}
	}
	expect(context.Background(), dir, "has no commit yet")
	outside := t.TempDir()
	expect(context.Background(), outside, outside+" is in no git repository")
	run("commit", "-q", "--allow-empty", "-m", "one")
	run("tag", "_x")
	expect(context.Background(), dir, `git says "_x"`)
	t.Setenv("PATH", outside)
	expect(context.Background(), dir, "git is not installed")
}

func TestGitVersion_EndsWithItsContext(t *testing.T) {
	dir, _ := repository(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := GitVersion(ctx, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
