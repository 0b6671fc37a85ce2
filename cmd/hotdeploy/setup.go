package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/hotdeploy/hotdeploy/internal/config"
	"github.com/hotdeploy/hotdeploy/remote"
	"github.com/hotdeploy/hotdeploy/systemd"
)

func (a *app) setupCommand() *cobra.Command {
	var wishes remote.SetupWishes
	var daemon string
	cmd := &cobra.Command{
		Use:   "setup [HOST]",
		Short: "Install the daemon on a host: binary, user, folders, unit",
		Long: `Setup makes a host ready for the project's service: it installs the daemon for the host's architecture, a user, folders and a systemd unit, and
starts it. It logs in as root, or as a user who may use sudo without a password; that user may push, and read the journal, afterwards. Repeating it changes
only what differs. It never restarts the service: a running daemon makes way for a newer one, or an older, which the app and its connections do not notice; one
that cannot goes on, and the error tells why. Setup says what of a changed unit counts only from the next restart on. A listener on a port below 1024 gives the service the capability to bind it.` + exitCodes,
		Example: `  hotdeploy setup root@web-1
  hotdeploy setup root@web-1 --deploy-user ann     # ann may push; with --read-journal also see the app's lines
  hotdeploy setup web-1 --socket-activation        # systemd binds the sockets`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeHost,
		RunE: runs(func(cmd *cobra.Command, args []string) error {
			p, err := a.project()
			if err != nil {
				return err
			}
			if p == nil {
				p = &config.Project{Service: a.service}
			}
			spec, err := remote.SpecFor(p, wishes)
			if err != nil {
				return err
			}
			hosts, err := a.hosts(p, firstOf(args))
			if err != nil {
				return err
			}
			return a.each(hosts, func(h *host) error { return h.setup(cmd.Context(), spec, daemon) })
		}),
	}
	f := cmd.Flags()
	f.StringVar(&wishes.User, "user", "", "the service's user (default: its name)")
	f.StringVar(&wishes.Root, "root", "", "where releases and state lie (default: /srv/SERVICE)")
	f.StringArrayVar(&wishes.DeployUsers, "deploy-user", nil, "a user on the host who may push (may be repeated)")
	f.BoolVar(&wishes.ReadJournal, "read-journal", false, "those users may read the host's journal, all of it, which  hotdeploy logs  needs")
	f.BoolVar(&wishes.SocketActivation, "socket-activation", false, "let systemd bind the listeners")
	f.StringVar(&daemon, "daemon", "", "the daemon's binary (default: hotdeployd-linux-ARCH beside hotdeploy)")
	return cmd
}

func (h *host) setup(ctx context.Context, spec systemd.SetupSpec, daemon string) error {
	s, err := h.dial(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	res, err := remote.Setup(ctx, s, remote.SetupOptions{Name: h.name, Spec: spec, Daemon: daemon, Say: h.told.say})
	h.answer.Setup = res
	for _, why := range res.Restart {
		h.say("restart needed: %s", why)
	}
	if err != nil {
		f := remote.Explain(h.name, err)
		if f.State == "" {
			f.State = "what was changed until then is told above; nothing was restarted"
		}
		if f.Hint == "" {
			f.Hint = "correct it, and repeat  hotdeploy setup " + h.name
		}
		return f
	}
	if len(res.Restart) > 0 {
		h.tell("set up; what needs a restart waits for  hotdeploy restart --daemon %s  (that closes connections)", h.name)
		return nil
	}
	h.tell("set up (%s)", res.Platform)
	return nil
}
