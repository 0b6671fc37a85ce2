// Command hotdeployd is the daemon: one runs for each service, under systemd or without it, and supervises that service's
// generations. Its other verbs are small helpers: launch (which it starts itself), dial (for servers that forbid
// forwarding), setup (run as root by hotdeploy setup).
//
// Read run in run.go first; everything it does is in package supervisor.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/hotdeploy/hotdeploy/internal/procs"
	"github.com/hotdeploy/hotdeploy/internal/version"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "launch" { // before anything else: it is in the way of every start
		procs.LaunchMain(os.Args[2:])
	}
	// Without this a write to a terminal or a pipe that is gone would end the daemon, and leave its generations behind. Not
	// ignored, since the children of an ignorant parent ignore it too.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the whole command; what it returns is the exit status.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:           "hotdeployd",
		Short:         "Supervise one service: start releases beside each other on the same sockets",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(runCommand(), endCommand(), dialCommand(), setupCommand(), versionCommand())
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(stderr, "hotdeployd: error: %v\n", err)
		return 1
	}
	return 0
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the daemon's version",
		Example: "  hotdeployd version",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), version.String())
			return err
		},
	}
}
