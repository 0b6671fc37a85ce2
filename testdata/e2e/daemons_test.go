package e2e

import (
	"encoding/json"
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

// variant builds one of our programs as if its control API had another version. Everything else is the real thing.
func variant(t *testing.T, pkg string, apiVersion string) string {
	t.Helper()
	types := filepath.Join(source, "internal", "api", "types.go")
	text, err := os.ReadFile(types)
	must(t, err)
	changed := strings.Replace(string(text), "const Version = 1\n", "const Version = "+apiVersion+"\n", 1)
	if changed == string(text) {
		t.Fatal("internal/api/types.go has no line  const Version = 1")
	}
	dir := t.TempDir()
	replaced, overlay, out := filepath.Join(dir, "types.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, filepath.Base(pkg))
	must(t, os.WriteFile(replaced, []byte(changed), 0o644))
	list, err := json.Marshal(map[string]map[string]string{"Replace": {types: replaced}})
	must(t, err)
	must(t, os.WriteFile(overlay, list, 0o644))
	cmd := exec.CommandContext(t.Context(), "go", "build", "-overlay", overlay, "-o", out, "./"+pkg)
	cmd.Dir, cmd.Env = source, append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build a %s that speaks API %s: %v\n%s", pkg, apiVersion, err, text)
	}
	return out
}

func TestPush_DaemonOfAnotherVersion(t *testing.T) {
	s := newService(t, common())
	s.push("1").want(0)
	must(t, os.MkdirAll(filepath.Join(s.dir, "bin"), 0o755))

	t.Run("older than the command", func(t *testing.T) {
		s := s.under(t)
		newer := variant(t, "cmd/hotdeploy", "2")
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
		newer := variant(t, "cmd/hotdeployd", "2")
		s.hotdeploy("setup", s.host, "--daemon", newer).want(0).wantText("restart needed")
		s.push("2").want(0) // setup restarts nothing: the old daemon is still there
		s.run("systemctl restart NAME")
		until(t, "it serves again", func() bool { _, _, err := s.get("/version"); return err == nil })
		c := s.push("3").want(3)
		c.wantText("newer", "state:", "hint:").oneScreen()
		t.Logf("%s", c)
		s.serves("2")
		s.setup()
		s.run("systemctl restart NAME")
		until(t, "it serves again", func() bool { _, _, err := s.get("/version"); return err == nil })
		s.push("3").want(0)
	})
}
