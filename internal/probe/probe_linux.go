package probe

import (
	"context"

	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/internal/sockets"
)

// Target is the generation that is asked.
type Target struct {
	Sockets map[string]*sockets.Socket // by the listener's name
	First   *sockets.Socket            // for a probe that names none; nil if there is none
	Pids    func() []int
	Dir     string   // of commands
	Env     []string // of commands
}

// Check asks once.
func Check(ctx context.Context, p release.Probe, t Target) error { panic("todo") }

// WaitReady repeats Check until it passes or ctx ends; the error then carries the last failure.
func WaitReady(ctx context.Context, r release.Ready, t Target) error { panic("todo") }
