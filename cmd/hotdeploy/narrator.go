package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/remote"
)

const (
	plainEvery = 5 * time.Second // between the lines of a long upload where there is no terminal
	barWidth   = 64
)

// narrator tells on standard error what happens on one host: a bar for an upload on a terminal, lines elsewhere.
type narrator struct {
	w        io.Writer
	name     string
	terminal bool
	verbose  bool
	bars     *bars

	mu      sync.Mutex // protects what follows; held while writing
	pending bool       // the line of a phase has no end yet
	upload  *upload
}

// upload is one upload in progress.
type upload struct {
	began, told time.Time
	first       remote.Transfer
	bar         *mpb.Bar
}

// bars are the bars of all hosts, one below the other.
type bars struct {
	mu       sync.Mutex // protects what follows; taken after a narrator's
	progress *mpb.Progress
	active   int
}

// add makes a bar, below those that are there.
func (b *bars) add(w io.Writer, name string, total int64) *mpb.Bar {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.progress == nil {
		b.progress = mpb.New(mpb.WithOutput(w), mpb.WithWidth(barWidth))
	}
	b.active++
	return b.progress.New(total, mpb.BarStyle(), mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Name(name+" "), decor.CountersKiloByte("% .1f of % .1f")),
		mpb.AppendDecorators(decor.AverageSpeed(decor.SizeB1000(0), "% .1f "), decor.AverageETA(decor.ET_STYLE_GO)))
}

// drop takes a bar away.
func (b *bars) drop(bar *mpb.Bar) {
	b.mu.Lock()
	defer b.mu.Unlock()
	bar.Abort(true)
	if b.active--; b.active == 0 {
		b.progress.Wait()
		b.progress = nil
	}
}

// line prints a line, above the bars if there are any.
func (b *bars) line(w io.Writer, line string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.progress != nil {
		w = b.progress
	}
	fmt.Fprintln(w, inLine(line))
}

func (a *app) newNarrator(name string) *narrator {
	f, ok := a.stderr.(*os.File)
	return &narrator{w: a.stderr, name: name, bars: &a.bars, verbose: a.verbose, terminal: ok && term.IsTerminal(int(f.Fd()))}
}

func (n *narrator) report() remote.Report {
	return remote.Report{Say: n.say, Transfer: n.transfer, Enter: n.enter, Phase: n.phase, Event: n.event}
}

// say prints a line about the host.
func (n *narrator) say(text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lineLocked(n.name + ": " + text)
}

func (n *narrator) lineLocked(line string) {
	n.endPhaseLocked()
	n.bars.line(n.w, line)
}

func (n *narrator) endPhaseLocked() {
	if n.pending {
		fmt.Fprintln(n.w)
		n.pending = false
	}
}

func (n *narrator) enter(phase string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.terminal {
		fmt.Fprintf(n.w, "  %-8s ...", inLine(phase))
		n.pending = true
	}
}

func (n *narrator) phase(p api.PhaseTime) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pending {
		fmt.Fprint(n.w, "\r")
		n.pending = false
	}
	line := fmt.Sprintf("  %-8s %.1fs", p.Phase, p.Took.Seconds())
	if p.Text != "" {
		line += "   " + p.Text
	}
	fmt.Fprintln(n.w, inLine(line))
}

func (n *narrator) event(e api.Event) {
	if n.verbose && e.Text != "" {
		n.say(e.Text)
	}
}

func (n *narrator) transfer(t remote.Transfer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if t.Files == 0 {
		n.lineLocked(n.name + ": nothing to upload, all of it is on the host already")
		return
	}
	if n.upload == nil {
		n.beginLocked(t)
	}
	switch u := n.upload; {
	case t.Ended:
		n.endLocked(t)
	case u.bar != nil:
		u.bar.SetTotal(t.Total-t.Resumed, false) // it may grow
		u.bar.SetCurrent(t.Done - t.Resumed)
	case time.Since(u.told) >= plainEvery:
		u.told = time.Now()
		n.lineLocked(fmt.Sprintf("%s: %s of %s, %s/s, %s left", n.name, size(t.Done), size(t.Total), size(u.rate(t)), u.left(t)))
	}
}

func (n *narrator) beginLocked(t remote.Transfer) {
	n.upload = &upload{began: time.Now(), told: time.Now(), first: t}
	what := size(t.Total - t.Resumed)
	switch {
	case t.Delta:
		what = size(t.Contents) + " as a delta"
	case t.Contents > 0:
		what = size(t.Contents) + " compressed"
	}
	line := fmt.Sprintf("%s: uploading %s, %s", n.name, count(t.Files, "file"), what)
	if had := t.Reused + t.Resumed; had > 0 {
		line += fmt.Sprintf(" (%s are there already)", size(had))
	}
	n.lineLocked(line)
	if n.terminal {
		n.upload.bar = n.bars.add(n.w, n.name, t.Total-t.Resumed)
	}
}

func (n *narrator) endLocked(t remote.Transfer) {
	u := n.upload
	n.stopBarLocked()
	took := time.Since(u.began)
	n.lineLocked(fmt.Sprintf("%s: uploaded %s in %.1fs (%s/s)", n.name, size(t.Total-t.Resumed), took.Seconds(), size(u.rate(t))))
}

func (n *narrator) stopBarLocked() {
	u := n.upload
	if n.upload = nil; u != nil && u.bar != nil {
		n.bars.drop(u.bar)
	}
}

// finish leaves nothing half written, whatever happened.
func (n *narrator) finish() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stopBarLocked()
	n.endPhaseLocked()
}

// rate is bytes per second of what was sent this time.
func (u *upload) rate(t remote.Transfer) int64 {
	took := max(time.Since(u.began), time.Millisecond)
	return int64(float64(t.Done-u.first.Done) / took.Seconds())
}

func (u *upload) left(t remote.Transfer) string {
	rate := u.rate(t)
	if rate <= 0 {
		return "who knows how much"
	}
	return (time.Duration(float64(t.Total-t.Done)/float64(rate)*float64(time.Second)) + time.Second/2).Round(time.Second).String()
}

// size is a number of bytes for people.
func size(n int64) string {
	switch {
	case n < 1000:
		return fmt.Sprintf("%d B", n)
	case n < 1000*1000:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	case n < 1000*1000*1000:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f GB", float64(n)/1e9)
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
