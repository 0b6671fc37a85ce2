package main

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/remote"
)

// app is one run of the command.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	configFile, sshConfig, service, store string // global flags
	json, verbose                         bool
	completing                            bool // nobody is to be asked for anything

	leave  context.Context // ends with the second ^C
	keys   *remote.Keys    // passphrases, typed once for all hosts
	answer answer
	bars   bars
}

// run is the whole command; what it returns is the exit status.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, keys: new(remote.Keys)}
	ctx, leave, stop := interruptible(ctx)
	defer stop()
	a.leave = leave
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	return a.finish(cmd, err).ExitStatus()
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "hotdeploy",
		Short: "Put a new release of a service on a VM without a connected client noticing",
		Long: `hotdeploy packs a release, brings it to a host over SSH and lets the daemon there start it beside the old one, with the same
listening sockets. The new one is watched; if it fails, everything is as before.

HOST is what ssh takes (user@host, an alias) or a target of hotdeploy.toml; it may be left out where hotdeploy.toml has one
target only. Several hosts get the release at the same time; then they are upgraded one after another, up to the first failure.`,
		Example: `  hotdeploy init                 # write hotdeploy.toml
  hotdeploy setup root@web-1     # install the daemon, once per host
  hotdeploy push web-1           # pack, upload, upgrade
  hotdeploy status web-1 --watch`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	f := root.PersistentFlags()
	f.StringVarP(&a.configFile, "config", "c", "", "the project's file (default: hotdeploy.toml here or further up)")
	f.StringVar(&a.sshConfig, "ssh-config", "", "ssh's configuration file (default: ssh's own)")
	f.StringVar(&a.service, "service", "", "the service (default: the one of hotdeploy.toml)")
	f.StringVar(&a.store, "store", os.Getenv(storeVariable), "where releases are kept to compute deltas from: a folder, sftp://[user@]host/folder, or none\n"+
		"(default: $"+storeVariable+", or $XDG_CACHE_HOME/hotdeploy)")
	f.BoolVar(&a.json, "json", false, "print the answer as one JSON object")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "tell more of what happens")
	root.AddCommand(a.initCommand(), a.packCommand(), a.setupCommand(), a.pushCommand(), a.statusCommand(), a.releasesCommand(),
		a.rollbackCommand(), a.cancelCommand(), a.startCommand(), a.stopCommand(), a.restartCommand(), a.historyCommand(), a.logsCommand(), a.retireCommand(), a.versionCommand())
	return root
}

// exitCodes is the last paragraph of a verb's help.
const exitCodes = `

Exit status: 0 done, 2 usage, 3 nothing changed, 4 rolled back (the old release is serving), 5 unknown (the line was lost: ask for the
status), 6 some hosts only.`

const readExitCodes = `

Exit status: 0 done, 2 usage, 3 the host could not be asked, 6 some hosts only.`

// runs makes what a verb returns an outcome: whatever else comes out of cobra is a mistake in the command line.
func runs(do func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := do(cmd, args); err != nil {
			return &verbError{err}
		}
		return nil
	}
}

// verbError is an error of a verb that was understood.
type verbError struct{ err error }

func (e *verbError) Error() string { return e.err.Error() }
func (e *verbError) Unwrap() error { return e.err }

// usageError is a mistake in the command line, or in hotdeploy.toml, with what to do about it.
type usageError struct {
	err  error
	hint string
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// finish prints how the run ended, and the answer if that is to be JSON.
func (a *app) finish(cmd *cobra.Command, err error) api.Outcome {
	outcome := outcomeOf(err)
	if err != nil {
		a.explain(cmd, err)
	}
	if a.json && (a.answer.wanted || err != nil) {
		a.answer.Outcome = outcome
		a.printJSON(a.answer.value())
	}
	return outcome
}

func outcomeOf(err error) api.Outcome {
	var (
		verb  *verbError
		usage *usageError
		some  *someHostsError
		f     *remote.Failure
	)
	switch {
	case err == nil:
		return api.Done
	case !errors.As(err, &verb), errors.As(err, &usage):
		return api.Usage
	case errors.As(err, &some):
		return api.SomeHosts
	case errors.As(err, &f):
		return f.Outcome
	}
	return api.NothingChanged
}
