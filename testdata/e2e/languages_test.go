package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hotdeploy/hotdeploy/testdata/apps"
	"github.com/hotdeploy/hotdeploy/testdata/load"
)

// The contract holds for any language: the same deploy, with apps that know nothing of Go.
func TestPush_AppsInOtherLanguages(t *testing.T) {
	for _, name := range []string{"pyecho", "nodeecho"} {
		t.Run(name, func(t *testing.T) {
			command := apps.Command(t, name) // skips, or fails CI, where there is no interpreter
			interpreter, script := filepath.Base(command[0]), filepath.Base(command[1])
			s := newService(t, common())
			needOnMachine(t, s, interpreter)
			must(t, os.RemoveAll(filepath.Join(s.dir, "bin")))
			s.place(command[1], script)
			s.base.Files, s.base.Command = fmt.Sprintf(`["%s"]`, script), fmt.Sprintf(`["%s", "%s"]`, interpreter, script)
			s.push("1").want(0)
			l := s.load(load.Options{WebSockets: 100, NewConnsPerSecond: 50})
			for _, v := range []string{"2", "3"} {
				c := s.push(v).want(0)
				s.serves(v)
				beat(t, l)
				t.Logf("push took %s: %s", c.took, phases(s.status().Last))
			}
			r := unnoticed(t, l)
			t.Logf("%s: %s, slowest request %s", name, r, r.Latency.Slowest)
			if r.Versions["1"] != 100 {
				t.Errorf("WebSockets are served by %v", r.Versions)
			}
			until(t, "the old generations have ended", func() bool { return len(s.status().Generations) == 1 })
		})
	}
}

// needOnMachine skips where the machine, which sees the host's /usr, has no such interpreter.
func needOnMachine(t *testing.T, s *service, interpreter string) {
	t.Helper()
	if s.run("command -v "+interpreter+" || true") != "" {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("CI must not skip: there is no %s on the machine", interpreter)
	}
	fmt.Fprintf(os.Stderr, "##### SKIPPED, NOT TESTED: %s: there is no %s on the machine #####\n", t.Name(), interpreter)
	t.Skipf("SKIPPED, NOT TESTED: there is no %s on the machine", interpreter)
}
