package failpoint

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The test binary is also a process that comes to a step, and says so when it is past it.
func TestMain(m *testing.M) {
	if file := os.Getenv(Env); file != "" {
		Arm(file)
		At("before")
		At("here")
		fmt.Println("past it")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestAt_StopsOrEndsTheOneThatComesFirst(t *testing.T) {
	for action, past := range map[string]bool{"kill": false, "stop": true} {
		t.Run(action, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "point")
			if err := os.WriteFile(file, []byte("here="+action), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), Env+"="+file)
			var out strings.Builder
			cmd.Stdout = &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if past {
				var status syscall.WaitStatus
				if _, err := syscall.Wait4(cmd.Process.Pid, &status, unix.WUNTRACED, nil); err != nil || !status.Stopped() {
					t.Errorf("%v, %v", status, err)
				}
				cmd.Process.Signal(syscall.SIGCONT)
			}
			if err := cmd.Wait(); (err == nil) != past || (out.String() == "past it\n") != past {
				t.Errorf("%v, it says %q", err, &out)
			}
			if _, err := os.Stat(Struck(file, cmd.Process.Pid)); err != nil {
				t.Error(err)
			}
		})
	}
}
