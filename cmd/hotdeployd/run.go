package main

import (
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/hotdeploy/hotdeploy/internal/config"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/internal/version"
	"github.com/hotdeploy/hotdeploy/supervisor"
	"github.com/hotdeploy/hotdeploy/systemd"
)

func runCommand() *cobra.Command {
	var path, service, root, runDir string
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Supervise a service until SIGTERM",
		Long: `Run supervises one service: it brings up the committed release and takes commands on the control socket. Under systemd it
is the unit's main process; in a terminal or a container it works the same, and relays the app's output.

Exit status: 0 after SIGTERM, 1 if it could not start.`,
		Example: `  hotdeployd run --config /etc/hotdeploy/chat.toml
  hotdeployd run --service chat --root ./chat --run-dir ./chat/run`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := daemonConfig(path, service, root, runDir)
			if err != nil {
				return err
			}
			return supervise(cmd, cfg)
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "the daemon's file (default /etc/hotdeploy/SERVICE.toml)")
	cmd.Flags().StringVar(&service, "service", "", "the service, if there is no file")
	cmd.Flags().StringVar(&root, "root", "", "where its releases and state lie (default /srv/SERVICE)")
	cmd.Flags().StringVar(&runDir, "run-dir", "", "where its control socket lies (default /run/SERVICE)")
	return cmd
}

// daemonConfig is the file, if there is one, and over it the flags. A file that was named must be there, and be of that
// service.
func daemonConfig(path, service, root, runDir string) (*config.Daemon, error) {
	cfg, err := loadConfig(path, service)
	if err != nil {
		return nil, err
	}
	if service != "" && cfg.Service != service {
		return nil, fmt.Errorf("%s is of the service %s, not %s", path, cfg.Service, service)
	}
	for _, over := range []struct{ flag, set *string }{{&root, &cfg.Root}, {&runDir, &cfg.RunDir}} {
		if *over.flag == "" {
			continue
		}
		if *over.set, err = filepath.Abs(*over.flag); err != nil {
			return nil, err
		}
	}
	_, err = cfg.Encode() // it checks what the flags have changed
	return cfg, err
}

func loadConfig(path, service string) (*config.Daemon, error) {
	if path != "" {
		return config.LoadDaemon(path)
	}
	if service == "" {
		return nil, errors.New("say which service: --config FILE or --service NAME")
	}
	if err := release.CheckService(service); err != nil {
		return nil, err
	}
	cfg, err := config.LoadDaemon("/etc/hotdeploy/" + service + ".toml")
	if errors.Is(err, os.ErrNotExist) {
		return config.NewDaemon(service), nil
	}
	return cfg, err
}

// supervise is the daemon from its first to its last line.
func supervise(cmd *cobra.Command, cfg *config.Daemon) error {
	passed, err := systemd.Listeners() // before anything opens a descriptor
	if err != nil {
		return err
	}
	flip, err := supervisor.NewFlip(supervisor.ReplaceWithin)
	if err != nil {
		return err
	}
	out := newLogWriter(cmd.ErrOrStderr())
	defer out.Close()
	debug.SetGCPercent(50) // it waits most of its life; memory is worth more to its host than the collector's time
	sockets, stored := systemd.Split(passed)
	if flip.Follows() {
		os.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
		if stored, err = flip.Inherit(); err != nil {
			return err
		}
	}
	s, err := supervisor.New(supervisor.Options{
		Config: *cfg, Flip: flip, Version: version.String(), Helper: []string{"/proc/self/exe", "launch"}, Sockets: sockets, Stored: stored,
		Environ: systemd.CleanEnviron(os.Environ()), Journal: systemd.OnJournal(), Output: os.Stdout,
		Log: log.New(out, "hotdeployd: ", 0),
	})
	if flip.Follows() {
		if err != nil {
			flip.Refuse(err)
		} else {
			err = flip.TakeOver(cmd.Context(), s)
		}
	}
	if err != nil {
		return err
	}
	return s.Run(cmd.Context())
}
