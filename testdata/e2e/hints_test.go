package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

// Whoever does what a hint says gets on.
func TestHints_Help(t *testing.T) {
	s := newService(t, common())
	s.push("1").want(0)

	lowPort := more("[[listen]]\nname = \"low\"\naddress = \":80\"")
	s.push("2", lowPort).want(3).wantText("CAP_NET_BIND_SERVICE", "hotdeploy setup "+s.host)
	s.hotdeploy("setup", s.host).want(0).wantText("hotdeploy restart --daemon " + s.host)
	s.push("2", lowPort).want(3).wantText("hotdeploy restart " + s.host + " --daemon") // set-up restarts nothing unasked
	s.hotdeploy("restart", "--daemon", s.host).want(0)
	s.push("2", lowPort).want(0)
	low := *s.project
	low.port = 80
	(&service{project: &low, vm: s.vm}).serves("2")

	needs := func(c *settings) { c.Run = `require_env = ["DATABASE_URL"]` }
	s.push("3", needs).want(3).wantText("DATABASE_URL", s.named("/srv/NAME/env"))
	s.run("echo DATABASE_URL=postgres://secret >>/srv/NAME/env")
	out := s.push("3", needs).want(0).text()
	if strings.Contains(out, "postgres://") || strings.Contains(s.vm.Journal(s.service), "postgres://") {
		t.Error("a secret was told")
	}
	if env := s.run(fmt.Sprintf("tr '\\0' '\\n' </proc/%d/environ", s.status().Generations[0].PID)); !strings.Contains(env, "DATABASE_URL=postgres://secret") {
		t.Errorf("the app's environment:\n%s", env)
	}

	s.push("4", startWith(`["no-such-program"]`)).want(3).wantText("install on the host: no-such-program", "PATH")
	program, err := os.ReadFile(filepath.Join(s.dir, "bin", "wsecho"))
	must(t, err)
	must(t, s.vm.WriteFile(t.Context(), "/usr/local/bin/no-such-program", program, 0o755))
	s.push("4", startWith(`["no-such-program"]`)).want(0)
	s.serves("4")
}

func TestLogs_Follow(t *testing.T) {
	s := newService(t, common())
	s.push("1").want(0)
	c := s.start("logs", "-f", s.host)
	c.says("version 1 serving")
	s.push("2").want(0)
	c.says("version 2 serving")
	c.interrupt()
	c.want(0)
	for _, line := range strings.Split(c.stdout.String(), "\n") {
		if strings.HasPrefix(line, "hotdeploy: ") {
			t.Errorf("standard output has %q", line)
		}
	}
}

// Scripts read the JSON, people watch.
func TestStatus_JSON_Watch(t *testing.T) {
	s := newService(t, common())
	s.push("1").want(0)
	var st api.Status
	must(t, json.Unmarshal([]byte(s.hotdeploy("--json", "status", s.host).want(0).stdout.String()), &st))
	if st.Committed == nil || st.Committed.Version != "1" || st.State != api.StateServing || len(st.Generations) != 1 {
		t.Errorf("status --json: %+v", st)
	}
	s.write(env(`WSECHO_EXIT_AT_START = "true"`))
	var failed struct {
		Outcome api.Outcome
		Hosts   []struct {
			Host    string
			Outcome api.Outcome
			Error   *api.Error
		}
	}
	must(t, json.Unmarshal([]byte(s.hotdeploy("--json", "push", "--version", "bad", s.host).want(3).stdout.String()), &failed))
	if failed.Outcome != api.NothingChanged || len(failed.Hosts) != 1 || failed.Hosts[0].Error == nil || failed.Hosts[0].Error.Code != api.ErrStart.Code ||
		len(failed.Hosts[0].Error.Output) == 0 {
		t.Errorf("push --json: %+v", failed)
	}
	watch := s.start("status", "--watch", s.host)
	watch.says("serving 1")
	s.push("2").want(0)
	watch.says("serving 2")
	watch.interrupt()
	watch.want(0)
}
