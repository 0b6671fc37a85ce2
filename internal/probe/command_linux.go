package probe

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// maxOutput is how much of a command's output is kept: its end.
const maxOutput = 4 << 10

// runCommand runs a check of the release's own; its whole process group is killed when ctx ends.
func runCommand(ctx context.Context, command []string, t Target) error {
	path := command[0]
	if strings.Contains(path, "/") && !filepath.IsAbs(path) {
		path = filepath.Join(t.Dir, path)
	}
	var out tail
	cmd := exec.CommandContext(ctx, path, command[1:]...)
	cmd.Dir, cmd.Env = t.Dir, t.Env
	if pids := t.Pids(); len(pids) > 0 {
		cmd.Env = append(cmd.Env[:len(cmd.Env):len(cmd.Env)], fmt.Sprintf("HOTDEPLOY_PID=%d", pids[0]))
	}
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // a child of it that left the group may hold the output open
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("check %s: %w%s", command[0], err, out.text())
	}
	return nil
}

// tail keeps the end of what is written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	t.b = t.b[max(0, len(t.b)-maxOutput):]
	return len(p), nil
}

func (t *tail) text() string {
	if s := strings.TrimSpace(string(t.b)); s != "" {
		return ": " + s
	}
	return ""
}
