package imports

import (
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/hotdeploy/hotdeploy/"

// allowed is which of our folders the packages of a folder may import, besides their own folder.
var allowed = map[string]string{
	"cmd":        "supervisor remote upgrade systemd internal",
	"supervisor": "upgrade systemd internal",
	"remote":     "upgrade systemd internal",
	"systemd":    "", // it speaks with systemd, and knows no service of ours
	"upgrade":    "", // an app takes it in, and must not take anything else of ours along
	"internal":   "",
}

func TestImports_PointOneWay(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}} {{join .Imports \" \"}}", module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		words := strings.Fields(line)
		from := folder(words[0])
		may, known := allowed[from]
		if !known {
			t.Errorf("%s: a folder that nobody planned for", words[0])
			continue
		}
		seen++
		for _, imported := range words[1:] {
			if !strings.HasPrefix(imported, module) {
				continue
			}
			if to := folder(imported); to != from && !strings.Contains(" "+may+" ", " "+to+" ") {
				t.Errorf("%s imports %s: %s may import only its own folder and: %s", words[0], imported, from, may)
			}
		}
	}
	if seen < 10 {
		t.Errorf("only %d packages were looked at", seen)
	}
}

// folder is the top-level folder of an import path of ours.
func folder(path string) string {
	f, _, _ := strings.Cut(strings.TrimPrefix(path, module), "/")
	return f
}
