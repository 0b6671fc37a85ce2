package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/remote"
)

const (
	watchEvery     = time.Second
	watchRetryLast = 5 * time.Second // between two tries to connect again
)

func (a *app) statusCommand() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "status [HOST]",
		Short: "Show what serves, what drains, and with how many connections",
		Long: `Status shows the service's generations on a host: the one that serves, one that is starting, and the old ones whose connections have not
ended. It also tells of the upgrade in flight, or how the last one ended. --watch shows it anew until ^C. --json prints what the daemon
says, as one object.` + readExitCodes,
		Example: `  hotdeploy status web-1
  hotdeploy status web-1 --watch
  hotdeploy status web-1 --json | jq .committed.version`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeHost,
		RunE: runs(func(cmd *cobra.Command, args []string) error {
			p, err := a.project()
			if err != nil {
				return err
			}
			hosts, err := a.hosts(p, firstOf(args))
			if err != nil {
				return err
			}
			if watch {
				return a.watch(cmd.Context(), hosts)
			}
			return a.statusOf(cmd.Context(), hosts)
		}),
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it anew until ^C")
	return cmd
}

// statusOf goes on after a failure: whoever asks for the status of several hosts wants to see which one is missing.
func (a *app) statusOf(ctx context.Context, hosts []*host) error {
	a.answer.wanted = true
	var failed error
	var done []string
	for _, h := range hosts {
		err := a.one(h, func(h *host) error { return h.status(ctx) })
		switch {
		case err == nil:
			done = append(done, h.name)
		case failed != nil:
			a.explain(nil, &verbError{failed})
			fallthrough
		default:
			failed = err
		}
	}
	if failed != nil && len(done) > 0 {
		return &someHostsError{err: failed, done: done}
	}
	if failed == nil && len(hosts) == 1 {
		a.answer.bare = hosts[0].answer.Status
	}
	return failed
}

func (h *host) status(ctx context.Context) error {
	_, st, err := h.begin(ctx)
	if err != nil {
		return readOnly(err)
	}
	h.answer.Status = &st
	if !h.json {
		printStatus(h.stdout, h.name, st, time.Now())
	}
	return nil
}

// readOnly makes a lost line what it is to somebody who only asked: nothing changed.
func readOnly(err error) error {
	var f *remote.Failure
	if errors.As(err, &f) || !errors.Is(err, api.ErrLineLost) {
		return err
	}
	f = remote.Explain("", err)
	f.Outcome = api.NothingChanged
	if !errors.Is(err, api.ErrSilent) {
		f.State, f.Hint = "not known: the line was lost while asking", "ask again"
	}
	return f
}

func printStatus(w io.Writer, name string, st api.Status, now time.Time) {
	line := func(format string, args ...any) { fmt.Fprintln(w, inLine(fmt.Sprintf(format, args...))) }
	line("%s: %s: %s", name, st.Service, st.Text)
	if len(st.Generations) > 0 {
		printGenerations(w, st.Generations, now)
	}
	for _, l := range st.Listeners {
		by := ""
		if l.Source == "systemd" {
			by = " (bound by systemd)"
		}
		line("listening: %s on %s %s%s", l.Name, l.Network, boundTo(l), by)
	}
	if up := st.Upgrade; up != nil {
		line("now:  %s of %s by %s for %s, in phase %s", up.Kind, up.To.Version, up.By, age(up.Started, now), up.Phase)
	}
	if up := st.Last; up != nil {
		line("last: %s", lastUpgrade(up, now))
	}
	for _, adopted := range st.Daemon.Adopted {
		line("supervisor, %s ago: %s", age(st.Daemon.Started, now), adopted)
	}
	if st.Previous != nil {
		line("a rollback goes to %s", st.Previous.Version)
	}
}

func boundTo(l api.Listener) string {
	if l.Bound != "" {
		return l.Bound
	}
	return l.Address
}

func printGenerations(w io.Writer, gens []api.Generation, now time.Time) {
	t := newTable(w, "GENERATION", "RELEASE", "STATE", "AGE", "PID", "MEMORY", "CONNECTIONS", "TEXT")
	for _, g := range gens {
		t.row(g.Number, g.Release.Version, g.State, age(g.Started, now), g.PID, memory(g.RSS), connections(g.Connections), remarks(g, now))
	}
	t.end()
}

// remarks is the app's own text, its health, and when a drain ends.
func remarks(g api.Generation, now time.Time) string {
	var list []string
	if g.Text != "" {
		list = append(list, g.Text)
	}
	if g.Health != "" && g.Health != "ok" {
		list = append(list, "unhealthy: "+g.Health)
	}
	if g.Taken != nil {
		list = append(list, fmt.Sprintf("took %d from generation %d", g.Taken.Moved, g.Taken.From))
	}
	if g.Handoff != nil {
		list = append(list, fmt.Sprintf("to generation %d: %s", g.Handoff.To, g.Handoff.Text()))
	}
	if g.Deadline != nil {
		list = append(list, "is ended in "+age(now, *g.Deadline))
	}
	return strings.Join(list, "; ")
}

func lastUpgrade(up *api.Upgrade, now time.Time) string {
	text := fmt.Sprintf("%s of %s by %s, %s ago: %s", up.Kind, up.To.Version, up.By, age(up.Started, now), up.Outcome)
	if up.Error != nil {
		text += ": " + strings.ReplaceAll(up.Error.Message, "\n", " ")
	}
	if moves := movesOf(up); moves != "" {
		text += "; " + moves
	}
	return text
}

// movesOf is what an upgrade did to live connections.
func movesOf(up *api.Upgrade) string {
	var list []string
	if up.Handoff != nil {
		list = append(list, up.Handoff.Text())
	}
	if up.HandedBack != nil {
		list = append(list, "back: "+up.HandedBack.Text())
	}
	return strings.Join(list, "; ")
}

func memory(n int64) string {
	if n < 0 {
		return "?"
	}
	return size(n)
}

func connections(n int) string {
	if n < 0 {
		return "?"
	}
	return strconv.Itoa(n)
}

// age is the time between two moments in its two largest units.
func age(from, to time.Time) string {
	d := max(to.Sub(from), 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}

// watch shows one host's status whenever something happens there, and every second, until ^C, which is its good end.
func (a *app) watch(ctx context.Context, hosts []*host) error {
	h, err := only(hosts)
	if err != nil {
		return err
	}
	a.answer.wanted = false // it prints as it goes
	err = a.one(h, func(h *host) error { return h.watch(ctx) })
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// watch goes on when the line is lost: it says so and connects again until it can, or until ^C.
func (h *host) watch(ctx context.Context) error {
	connected := false
	for wait := watchEvery; ; wait = min(2*wait, watchRetryLast) {
		shown, err := h.watchOnce(ctx)
		switch {
		case ctx.Err() != nil || !connected && !shown:
			return readOnly(err)
		case shown:
			connected, wait = true, watchEvery
			h.say("%v; connecting again", err)
		}
		h.d.Close()
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

// watchOnce shows the status until the line is lost, or the daemon is; shown says that it could be asked at all.
func (h *host) watchOnce(ctx context.Context) (shown bool, err error) {
	c, st, err := h.begin(ctx)
	if err != nil {
		return false, err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	happened := make(chan struct{}, 1)
	lost := make(chan error, 1)
	go func() { // ends with ctx or the line
		lost <- c.Events(ctx, st.Seq, func(api.Event) error {
			select {
			case happened <- struct{}{}:
			default:
			}
			return nil
		})
	}()
	for {
		h.redraw(st)
		select {
		case <-happened:
		case <-time.After(watchEvery):
		case err := <-lost:
			return true, err
		}
		if st, err = c.Status(ctx); err != nil {
			return true, err
		}
	}
}

func (h *host) redraw(st api.Status) {
	if h.json {
		h.printJSON(st)
		return
	}
	if f, ok := h.stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprint(h.stdout, "\x1b[H\x1b[2J")
	}
	printStatus(h.stdout, h.name, st, time.Now())
}
