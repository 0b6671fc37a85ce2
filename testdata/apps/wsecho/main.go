package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// buildMark goes into the binary by -ldflags "-X main.buildMark=..." so that
// two releases of the same source differ in content.
var buildMark string

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stderr))
}

// run is one life of the app: settings, sockets, READY, and after SIGTERM
// until the last client has left. It returns the exit status.
func run(ctx context.Context, args []string, stderr io.Writer) int {
	cfg, err := parseConfig(args, os.LookupEnv, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintf(stderr, "wsecho: error: %v\n", err)
		return 2
	}
	if cfg.untilEOF {
		go func() {
			io.Copy(io.Discard, os.Stdin)
			os.Exit(1)
		}()
	}
	// From here on a SIGTERM is answered, also while the start is slow.
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM, syscall.SIGINT)

	if status, done := misbehaveAtStart(ctx, cfg, term, stderr); done {
		return status
	}
	a, err := newApp(cfg)
	if err != nil {
		fmt.Fprintf(stderr, "wsecho: error: %v\n", err)
		return 1
	}
	a.serve()
	a.notify(stderr, "READY=1\nSTATUS=serving "+cfg.version)
	fmt.Fprintf(stderr, "wsecho: version %s serving on %s\n", cfg.version, a.addrs())
	if cfg.printAddr {
		fmt.Println(a.addrs())
	}
	return a.untilStopped(term, stderr)
}
