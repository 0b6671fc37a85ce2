// Command load runs the load driver against an address and prints its report
// as JSON. Its exit status is 0 if the clients noticed nothing, 1 if they did.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/hotdeploy/hotdeploy/testdata/load"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run loads until ctx ends or the time is over; both are a normal end.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var o load.Options
	fs := flag.NewFlagSet("load", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.Addr, "addr", "127.0.0.1:8080", "`host:port` to load")
	fs.IntVar(&o.WebSockets, "websockets", 1000, "how many to hold")
	fs.DurationVar(&o.MessageInterval, "interval", time.Second, "between two messages of one WebSocket")
	fs.IntVar(&o.NewConnsPerSecond, "new", 200, "new connections per second")
	fs.DurationVar(&o.RequestTimeout, "timeout", 10*time.Second, "of one request")
	mayMove := fs.Bool("may-move", false, "a WebSocket may go on in another process")
	during := fs.Duration("for", 0, "how long to load, once all WebSockets are open (0: until interrupted)")
	wait := fs.Duration("wait", 10*time.Second, "how long to wait in the end for what is due")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	if *mayMove {
		o.Held = load.MayMove
	}
	report, err := loadFor(ctx, o, *during, *wait, stderr)
	if err != nil {
		fmt.Fprintf(stderr, "load: error: %v\n", err)
		return 2
	}
	out := json.NewEncoder(stdout)
	out.SetIndent("", "  ")
	if err := out.Encode(report); err != nil {
		fmt.Fprintf(stderr, "load: error: %v\n", err)
		return 2
	}
	fmt.Fprintln(stderr, report)
	if report.Err() != nil {
		return 1
	}
	return 0
}

// loadFor does not give ctx to the load itself: an interrupt is a request for
// the report, not the end of the connections.
func loadFor(ctx context.Context, o load.Options, during, wait time.Duration, stderr io.Writer) (load.Report, error) {
	l, err := load.Start(context.WithoutCancel(ctx), o)
	if err != nil {
		return load.Report{}, err
	}
	if err := l.Ready(ctx); err == nil {
		fmt.Fprintf(stderr, "load: %d WebSockets open\n", o.WebSockets)
		if during > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, during)
			defer cancel()
		}
		<-ctx.Done()
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), wait)
	defer cancel()
	return l.Stop(end), nil
}
