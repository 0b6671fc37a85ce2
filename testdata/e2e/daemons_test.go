package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestPush_DaemonStopped(t *testing.T) {
	s := newService(t, common())
	s.push("1").want(0)
	s.run("systemctl stop NAME")
	c := s.push("2").want(3)
	c.wantText("not running", "state:", "hint:", "systemctl start "+s.service).oneScreen()
	t.Logf("%s", c)
	s.run("systemctl start NAME")
	until(t, "it serves again", func() bool { _, _, err := s.get("/version"); return err == nil })
	if got := s.consistent(); got != "1" {
		t.Errorf("release %s serves", got)
	}
	s.push("2").want(0)
}

func TestPush_NeverSetUp(t *testing.T) {
	s := newProject(t).on(common())
	c := s.push("1").want(3)
	c.wantText("not set up", "state:", "hint:", "hotdeploy setup "+s.host).oneScreen()
	t.Logf("%s", c)
	s.hotdeploy("status", s.host).want(3).wantText("not set up")
}

// edit replaces what a file of our source has exactly once.
type edit struct{ file, old, new string }

// variant builds one of our programs with something in its source changed. Everything else is the real thing.
func variant(t *testing.T, pkg string, edits ...edit) string {
	t.Helper()
	dir := t.TempDir()
	overlay, out, files := filepath.Join(dir, "overlay.json"), filepath.Join(dir, filepath.Base(pkg)), map[string]string{}
	for i, e := range edits {
		file := filepath.Join(source, filepath.FromSlash(e.file))
		text, err := os.ReadFile(file)
		must(t, err)
		if strings.Count(string(text), e.old) != 1 {
			t.Fatalf("%s has not exactly one  %s", file, e.old)
		}
		files[file] = filepath.Join(dir, fmt.Sprintf("%d.go", i))
		must(t, os.WriteFile(files[file], []byte(strings.Replace(string(text), e.old, e.new, 1)), 0o644))
	}
	list, err := json.Marshal(map[string]map[string]string{"Replace": files})
	must(t, err)
	must(t, os.WriteFile(overlay, list, 0o644))
	cmd := exec.CommandContext(t.Context(), "go", "build", "-ldflags", "-s -w", "-overlay", overlay, "-o", out, "./"+pkg)
	cmd.Dir, cmd.Env = source, append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build a %s with %+v: %v\n%s", pkg, edits, err, text)
	}
	return out
}

// ofAPI is one whose control API has another version.
func ofAPI(t *testing.T, pkg, version string) string {
	return variant(t, pkg, edit{"internal/api/types.go", "const Version = 1\n", "const Version = " + version + "\n"})
}

func TestPush_DaemonOfAnotherVersion(t *testing.T) {
	s := newService(t, common())
	s.push("1").want(0)
	must(t, os.MkdirAll(filepath.Join(s.dir, "bin"), 0o755))

	t.Run("older than the command", func(t *testing.T) {
		s := s.under(t)
		newer := ofAPI(t, "cmd/hotdeploy", "2")
		s.write()
		c := start(t, s.dir, newer, "--ssh-config", s.sshConfig, "push", "--version", "2", s.host)
		c.want(3).wantText("older", "state:", "hint:", "hotdeploy setup "+s.host).oneScreen()
		t.Logf("%s", c)
		if got := s.consistent(); got != "1" {
			t.Errorf("release %s serves", got)
		}
	})
	t.Run("newer than the command", func(t *testing.T) {
		s := s.under(t)
		newer := ofAPI(t, "cmd/hotdeployd", "2")
		s.hotdeploy("setup", s.host, "--daemon", newer).want(0).wantText("made way")
		c := s.push("2").want(3)
		c.wantText("newer", "state:", "hint:").oneScreen()
		t.Logf("%s", c)
		s.serves("1")
		s.setup() // and back
		s.push("2").want(0)
	})
}
