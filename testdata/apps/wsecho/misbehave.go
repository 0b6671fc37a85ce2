package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"time"
)

// misbehaveAtStart does what is wrong before the app serves. done means that
// the process ends now, with status.
func misbehaveAtStart(ctx context.Context, c config, term <-chan os.Signal, stderr io.Writer) (status int, done bool) {
	if c.floodStderrMiB > 0 {
		go flood(stderr, c.floodStderrMiB)
	}
	allocate(c.allocateMiB)
	if c.exitAtStart {
		fmt.Fprintln(stderr, "wsecho: start line 1: reading settings")
		fmt.Fprintln(stderr, "wsecho: start line 2: opening the database")
		fmt.Fprintln(stderr, "wsecho: start line 3: fatal: the database said no")
		return 3, true
	}
	if c.neverReady {
		fmt.Fprintln(stderr, "wsecho: told to be never ready")
		return waitIgnoring(ctx, nil, term, c)
	}
	if c.slowStart > 0 {
		fmt.Fprintf(stderr, "wsecho: the start takes %s\n", c.slowStart)
		return waitIgnoring(ctx, time.After(c.slowStart), term, c)
	}
	return 0, false
}

// waitIgnoring waits for over (nil: for ever). A SIGTERM meanwhile ends the
// process, unless it is told to ignore that as well.
func waitIgnoring(ctx context.Context, over <-chan time.Time, term <-chan os.Signal, c config) (int, bool) {
	for {
		select {
		case <-over:
			return 0, false
		case <-ctx.Done():
			return 1, true
		case <-term:
			if !c.ignoreSIGTERM {
				return 0, true
			}
		}
	}
}

// hoard keeps what allocate took for as long as the process lives.
var hoard [][]byte

// allocate touches every page, since untouched ones are not resident.
func allocate(mib int) {
	for range mib {
		page := make([]byte, 1<<20)
		for i := 0; i < len(page); i += 4096 {
			page[i] = 1
		}
		hoard = append(hoard, page)
	}
}

// flood writes mib times 1 MiB of lines; it may block for as long as nobody
// reads standard error, and ends with the process.
func flood(w io.Writer, mib int) {
	line := bytes.Repeat([]byte("x"), 127)
	line = append(line, '\n')
	block := bytes.Repeat(line, 512)
	for range mib * 16 {
		if _, err := w.Write(block); err != nil {
			return
		}
	}
}

// untilMisbehaved starts the timers of a ready app. A status on the channel
// means: exit with it, now.
func (a *app) untilMisbehaved() <-chan int {
	exit := make(chan int, 2)
	if a.cfg.unhealthyAfter > 0 {
		time.AfterFunc(a.cfg.unhealthyAfter, func() { a.unhealthy.Store(true) })
	}
	if a.cfg.exitAfter > 0 {
		time.AfterFunc(a.cfg.exitAfter, func() { exit <- a.cfg.exitStatus })
	}
	if a.cfg.exitWhenReady != neverExit {
		exit <- a.cfg.exitWhenReady
	}
	return exit
}
