package systemd

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"
)

// The test binary stands in for the processes that these tests start: which
// one, says this variable.
const roleVariable = "SYSTEMD_TEST_ROLE"

var roles = map[string]func() error{}

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		if err := playRole(role); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
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
