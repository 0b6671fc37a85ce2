package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// ReportTo logs the end of each machine's journal and console when t ends as failed.
// New does it by itself; tests that share a lab call it first thing.
func (l *Lab) ReportTo(t testing.TB) {
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for _, m := range l.Machines {
			t.Logf("%s, console:\n%s", m.Name, m.Console())
			t.Logf("%s, journal:\n%s", m.Name, m.journal("--lines=80"))
		}
	})
}

// Journal is all that a unit of the machine has logged, over all boots. It works on a crashed
// machine too. An error is part of the text, since this is for people to read.
func (m *Machine) Journal(unit string) string { return m.journal("--unit", unit) }

// journal reads the files of a dead machine directly; a running one is asked to flush its own
// first. Either way it is this host's journalctl that reads.
func (m *Machine) journal(args ...string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	// Fails on a dead machine, which has nothing left to flush.
	_, _ = m.Enter(ctx, "journalctl --sync")
	args = append([]string{"--no-pager", "--output=short-precise", "--directory=" + filepath.Join(m.dir, "up", "var", "log", "journal")}, args...)
	out, err := exec.CommandContext(ctx, "journalctl", args...).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%sjournalctl: %v\n", out, err)
	}
	return string(out)
}

// Console is the end of what the machine's supervisor, its early boot and its line have said.
func (m *Machine) Console() string {
	const tail = 8 << 10
	text, err := os.ReadFile(filepath.Join(m.dir, "console.log"))
	if err != nil {
		return err.Error() + "\n"
	}
	if len(text) > tail {
		text = text[len(text)-tail:]
		text = text[bytes.IndexByte(text, '\n')+1:]
	}
	return string(text)
}
