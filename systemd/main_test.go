package systemd

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// The test binary stands in for the processes that these tests start. Which
// one, says this variable, or the configuration of a service that is set up
// with it as its daemon (`<daemon> run --config <config>`).
const roleVariable = "SYSTEMD_TEST_ROLE"

var roles = map[string]func() error{}

func TestMain(m *testing.M) {
	if role := ownRole(); role != "" {
		if err := playRole(role); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) > 1 && os.Args[1] == "end" { // ExecStop and ExecStopPost: a role leaves nothing
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func ownRole() string {
	if len(os.Args) == 4 && os.Args[1] == "run" && os.Args[2] == "--config" {
		text, _ := os.ReadFile(os.Args[3])
		role, _, _ := strings.Cut(string(text), "\n")
		return strings.TrimPrefix(role, "# role: ")
	}
	return os.Getenv(roleVariable)
}

// roleCommand is this binary in another role. GORACE: else each one lingers
// for a second at its end under the race detector.
func roleCommand(role string, env ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), "GORACE=atexit_sleep_ms=0", roleVariable+"="+role), env...)
	return cmd
}

func playRole(role string) error {
	play, ok := roles[role]
	if !ok {
		return fmt.Errorf("no role %q", role)
	}
	if os.Getenv("LISTEN_PID") == "self" { // the starter cannot know it beforehand
		os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	}
	return play()
}
