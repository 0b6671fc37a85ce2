package apps

import (
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

//go:embed pyecho/app.py nodeecho/app.js
var scripts embed.FS

// interpreted are the apps that run from their source.
var interpreted = map[string]struct{ interpreter, script string }{
	"pyecho":   {"python3", "pyecho/app.py"},
	"nodeecho": {"node", "nodeecho/app.js"},
}

// Command returns the words that start the app name ("wsecho", "pyecho",
// "nodeecho") on this machine; the last one is a file that is the test's own.
// It skips the test where the interpreter is missing, loudly.
func Command(t testing.TB, name string) []string {
	t.Helper()
	app, ok := interpreted[name]
	if !ok {
		return []string{Build(t, name, "", "")}
	}
	interpreter := Need(t, app.interpreter)
	source, err := scripts.ReadFile(app.script)
	if err != nil {
		t.Fatalf("the source of %s: %v", name, err)
	}
	own := filepath.Join(t.TempDir(), filepath.Base(app.script))
	if err := os.WriteFile(own, source, 0o755); err != nil {
		t.Fatalf("the source of %s: %v", name, err)
	}
	return []string{interpreter, own}
}

// Need returns the path of a program. Without it the test is skipped, in a
// line that can be seen; with CI=true it fails instead.
func Need(t testing.TB, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err == nil {
		return path
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("CI must not skip: %v", err)
	}
	fmt.Fprintf(os.Stderr, "##### SKIPPED, NOT TESTED: %s: there is no %s #####\n", t.Name(), program)
	t.Skipf("SKIPPED, NOT TESTED: there is no %s", program)
	return ""
}
