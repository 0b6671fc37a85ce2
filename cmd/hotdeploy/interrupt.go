package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// interruptible ends first with the first ^C and leave with the second; the third ends the process as if nobody had caught it.
// stop gives the signals back.
func interruptible(ctx context.Context) (first, leave context.Context, stop func()) {
	leave, leaveNow := context.WithCancel(context.WithoutCancel(ctx))
	first, cancel := context.WithCancel(ctx)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	ended := make(chan struct{})
	go func() {
		for _, end := range []func(){cancel, leaveNow} {
			select {
			case <-signals:
				end()
			case <-ended:
				return
			}
		}
		signal.Stop(signals)
	}()
	return first, leave, func() {
		signal.Stop(signals)
		close(ended)
		cancel()
		leaveNow()
	}
}
