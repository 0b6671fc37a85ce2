package e2e

import (
	"context"
	"testing"
	"time"
)

// The wire itself must be beyond doubt: it carries what it should, counts it, and lets nothing through when it is cut.
func TestLine_CarriesCountsAndCuts(t *testing.T) {
	l, config := newLine(t, common())
	ssh := func(limit time.Duration, cmd string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		out, err := world.Command(ctx, "ssh", "-F", config, "-o", "BatchMode=yes", common().Name, cmd).Output()
		return string(out), err
	}
	if out, err := ssh(patience, "head -c 1000000 /dev/zero | wc -c"); err != nil || out != "1000000\n" {
		t.Fatalf("over the line: %q, %v", out, err)
	}
	sent := l.total()
	if sent < 1000 || sent > 100_000 {
		t.Errorf("%d bytes went to the machine", sent)
	}
	l.cutAfter(sent/2, l.reset)
	if out, err := ssh(patience, "echo through"); err == nil || out != "" {
		t.Errorf("after the cut came %q", out)
	}
	l.cutAfter(sent/2, l.silence)
	if out, err := ssh(2*time.Second, "echo through"); err == nil || out != "" {
		t.Errorf("over a silent line came %q", out)
	}
	l.restore()
	if out, err := ssh(patience, "echo through"); err != nil || out != "through\n" {
		t.Errorf("after that: %q, %v", out, err)
	}
}
