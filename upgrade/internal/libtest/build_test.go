package libtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// scratch is a directory for the whole run, since building takes longer than most tests.
var scratch string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	var err error
	if scratch, err = os.MkdirTemp("", "libtest"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(scratch)
	return m.Run()
}

var honest = sync.OnceValues(func() (string, error) { return build("honest", raced) })

// app returns the path of the program in ./app.
func app(t testing.TB) string {
	t.Helper()
	path, err := honest()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// build makes the program with more arguments for the go command.
func build(name string, race bool, args ...string) (string, error) {
	out := filepath.Join(scratch, name)
	args = append([]string{"build", "-buildvcs=false", fmt.Sprintf("-race=%t", race), "-o", out}, args...)
	text, err := exec.Command("go", append(args, "./app")...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build of %s: %w\n%s", name, err, text)
	}
	return out, nil
}
