package main

import (
	"context"
	"fmt"
	"io"
	"net"

	"github.com/spf13/cobra"

	"github.com/hotdeploy/hotdeploy/supervisor"
)

func dialCommand() *cobra.Command {
	var service, socket string
	cmd := &cobra.Command{
		Use:   "dial",
		Short: "Connect standard input and output to a service's control socket",
		Long: `Dial is how hotdeploy reaches the control socket through an SSH server that forbids forwarding of unix sockets.

Exit status: 0 when one side has closed the connection, 1 if there was none.`,
		Example: "  ssh host hotdeployd dial --service chat",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if socket == "" {
				if service == "" {
					return fmt.Errorf("say which: --service NAME or --socket PATH")
				}
				socket = supervisor.ControlSocket("/run/" + service)
			}
			return dial(cmd.Context(), socket, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&service, "service", "", "the service")
	cmd.Flags().StringVar(&socket, "socket", "", "the control socket's path (default /run/SERVICE/control.sock)")
	return cmd
}

// dial ends when the daemon closes the connection or ctx ends. The end of stdin is passed on, and the answer still read.
func dial(ctx context.Context, socket string, stdin io.Reader, stdout io.Writer) error {
	c, err := supervisor.DialControl(ctx, socket)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	go func() {
		io.Copy(c, stdin)
		c.(*net.UnixConn).CloseWrite()
	}()
	_, err = io.Copy(stdout, c)
	return err
}
