package main

import (
	"flag"
	"fmt"
	"io"
	"strings"
	"time"
)

// config is what the flags and the environment say. Everything from exitAtStart
// on is a misbehaviour, off by default.
type config struct {
	addr       string
	version    string
	generation string
	printAddr  bool
	untilEOF   bool

	exitAtStart    bool
	neverReady     bool
	slowStart      time.Duration
	exitWhenReady  int
	exitAfter      time.Duration
	exitStatus     int
	unhealthy      bool
	unhealthyAfter time.Duration
	alsoListen     string
	ignoreSIGTERM  bool
	abrupt         bool
	allocateMiB    int
	floodStderrMiB int
}

const neverExit = -1

func flags(c *config, out io.Writer) *flag.FlagSet {
	fs := flag.NewFlagSet("wsecho", flag.ContinueOnError)
	fs.SetOutput(out)
	fs.StringVar(&c.addr, "addr", "127.0.0.1:8080", "`address` to bind when no listener is passed")
	fs.StringVar(&c.version, "version", "dev", "`version` to answer with (environment: HOTDEPLOY_VERSION)")
	fs.BoolVar(&c.printAddr, "print-addr", false, "print the bound addresses to standard output once ready")
	fs.BoolVar(&c.untilEOF, "until-eof", false, "exit with 1 when standard input ends, so that a killed test leaves no orphan")

	fs.BoolVar(&c.exitAtStart, "exit-at-start", false, "print three lines and exit with 3")
	fs.BoolVar(&c.neverReady, "never-ready", false, "hang in the start: accept nothing, never say READY=1")
	fs.DurationVar(&c.slowStart, "slow-start", 0, "`time` that the start takes")
	fs.IntVar(&c.exitWhenReady, "exit-when-ready", neverExit, "exit with `status` right after READY=1")
	fs.DurationVar(&c.exitAfter, "exit-after", 0, "exit this `time` after READY=1")
	fs.IntVar(&c.exitStatus, "exit-status", 1, "`status` of -exit-after")
	fs.BoolVar(&c.unhealthy, "unhealthy", false, "answer /healthz with 503")
	fs.DurationVar(&c.unhealthyAfter, "unhealthy-after", 0, "answer /healthz with 503 from this `time` after READY=1")
	fs.StringVar(&c.alsoListen, "also-listen", "", "bind a further TCP `address` itself")
	fs.BoolVar(&c.ignoreSIGTERM, "ignore-sigterm", false, "go on accepting after SIGTERM")
	fs.BoolVar(&c.abrupt, "abrupt", false, "exit at once on SIGTERM, dropping every connection")
	fs.IntVar(&c.allocateMiB, "allocate-mib", 0, "hold `n` MiB of memory")
	fs.IntVar(&c.floodStderrMiB, "flood-stderr-mib", 0, "write `n` MiB to standard error as fast as it takes them")
	return fs
}

// envName is the variable that sets a flag; the version and the address of the
// supervisor's contract keep their own names.
func envName(flagName string) string {
	if flagName == "version" {
		return "HOTDEPLOY_VERSION"
	}
	return "WSECHO_" + strings.ToUpper(strings.ReplaceAll(flagName, "-", "_"))
}

// parseConfig reads the settings: flag, then environment, then default.
func parseConfig(args []string, lookup func(string) (string, bool), out io.Writer) (config, error) {
	var c config
	fs := flags(&c, out)
	if err := fs.Parse(args); err != nil {
		return c, err
	}
	if fs.NArg() > 0 {
		return c, fmt.Errorf("argument %q: wsecho takes flags only", fs.Arg(0))
	}
	given := map[string]bool{}
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	var bad error
	fs.VisitAll(func(f *flag.Flag) {
		value, ok := lookup(envName(f.Name))
		if !ok || value == "" || given[f.Name] || bad != nil {
			return
		}
		if err := fs.Set(f.Name, value); err != nil {
			bad = fmt.Errorf("environment variable %s=%q: %w", envName(f.Name), value, err)
		}
	})
	c.generation, _ = lookup("HOTDEPLOY_GENERATION")
	return c, bad
}
