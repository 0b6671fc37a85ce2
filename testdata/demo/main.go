// Command demo shows the main job without root, sshd and systemd: an SSH server on loopback, the daemon, and the
// command push releases 1, 2 and a broken 3 of wslive, while WebSockets are held open and short requests come in. The
// WebSockets move to release 2, to the broken 3, and back. It fails if a client noticed anything.
//
// Read run first.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/hotdeploy/hotdeploy/testdata/demo/host"
	"github.com/hotdeploy/hotdeploy/testdata/load"
)

// What the clients do meanwhile.
const (
	webSockets     = 100
	newConnections = 50 // a second
	messageEvery   = 100 * time.Millisecond
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo: failed:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	h, err := host.Start(ctx, host.Options{Source: ".", Bin: "bin", App: "wslive", Soak: 2 * time.Second, Output: os.Stdout})
	if err != nil {
		return err
	}
	defer h.Close()

	step("1. The first release goes to a host that has none.")
	if err := h.Push(ctx, "1", "", 0); err != nil {
		return err
	}
	step("2. Clients come: %d WebSockets that stay open from here on, and %d short requests a second.", webSockets, newConnections)
	clients, err := load.Start(ctx, load.Options{Addr: h.Addr(), WebSockets: webSockets, NewConnsPerSecond: newConnections, MessageInterval: messageEvery, Held: load.MayMove})
	if err != nil {
		return err
	}
	if err := clients.Ready(ctx); err != nil {
		return err
	}
	if err := tell(ctx, clients); err != nil {
		return err
	}
	step("3. Release 2 takes over. The WebSockets move to it while they talk, and release 1 ends.")
	if err := h.Push(ctx, "2", "", 0); err != nil {
		return err
	}
	if err := tell(ctx, clients); err != nil {
		return err
	}
	step("4. Release 3 is broken: it starts, and then is not healthy. It is taken back, and the WebSockets with it.")
	if err := h.Push(ctx, "3", `env = { WSLIVE_UNHEALTHY = "1" }`, 4); err != nil {
		return err
	}
	if err := tell(ctx, clients); err != nil {
		return err
	}
	step("5. What the host says of itself.")
	if err := h.Hotdeploy(ctx, 0, "status", "demo"); err != nil {
		return err
	}
	return judge(ctx, clients)
}

// step is a heading: bold where somebody looks at it.
func step(text string, args ...any) {
	if term.IsTerminal(int(os.Stdout.Fd())) && os.Getenv("NO_COLOR") == "" {
		text = "\x1b[1m" + text + "\x1b[0m"
	}
	fmt.Printf("\n# "+text+"\n", args...)
}
