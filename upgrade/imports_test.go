package upgrade_test

import (
	"os/exec"
	"strings"
	"testing"
)

// TestImports_AreFew: an app that takes in this package takes in none of the libraries that the project is tested with, nor an SSH client.
func TestImports_AreFew(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{"github.com/hotdeploy/hotdeploy/upgrade", "golang.org/x/sys/unix", "github.com/cloudflare/tableflip"}
	for path := range strings.FieldsSeq(string(out)) {
		if !anyPrefix(path, allowed) {
			t.Errorf("an app would compile %s", path)
		}
	}
}

func anyPrefix(s string, prefixes []string) bool {
	for _, p := range prefixes {
		if s == p || strings.HasPrefix(s, p+"/") {
			return true
		}
	}
	return false
}
