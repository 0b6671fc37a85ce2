package browser

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/hotdeploy/hotdeploy/testdata/demo/host"
)

// page is what the script of the page calls seen.
type page struct {
	Sent, Answered, Ticks, Wrong, Requests, Failed, Closes, Errors int

	Silence    float64 // milliseconds
	Extensions string
	Events     int    // of the stream
	EventsFrom string // the release
	Releases   []struct{ Version, Generation string }
	Notes      []string
}

func TestPage_ThreeUpgradesAndARollback_NothingNoticed(t *testing.T) {
	chromium := needChromium(t)
	h := startHost(t, t.Context()) // builds; that may take its time
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	tab, network := startChromium(t, ctx, chromium)
	deploy(t, h.Push(ctx, "1", "", 0))
	if err := chromedp.Do(tab, chromedp.Navigate("http://"+h.Addr()+"/")); err != nil {
		t.Fatal(err)
	}
	await(t, tab, "1")
	for _, v := range []string{"2", "3", "4"} {
		deploy(t, h.Push(ctx, v, "", 0))
		await(t, tab, v)
	}
	deploy(t, h.Hotdeploy(ctx, 0, "rollback", "demo"))
	await(t, tab, "3")
	seen := rest(t, tab)
	takePicture(t, tab, "page.png")
	check(t, seen, network)
}

func startHost(t *testing.T, ctx context.Context) *host.Host {
	t.Helper()
	h, err := host.Start(ctx, host.Options{Source: "../..", App: "wslive", Soak: 500 * time.Millisecond, Output: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func deploy(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// await waits until that release has answered the page a few times; a page that cannot get there any more says so at once.
func await(t *testing.T, tab context.Context, version string) {
	t.Helper()
	const arrived = `(() => {
		const last = seen.releases.at(-1);
		if (seen.closes || seen.failed) return "broken";
		return last && last.version === %q && last.answers >= 16 && "there";
	})()`
	got, err := chromedp.Run(tab, chromedp.Poll[string](fmt.Sprintf(arrived, version), chromedp.WithPollingInterval(20*time.Millisecond), chromedp.WithPollingTimeout(patience)))
	if err != nil || got != "there" {
		t.Fatalf("the page does not get to release %s: %v: %+v", version, err, look(t, tab, "seen"))
	}
}

// rest ends the page's talking: everything that it said has been answered then.
func rest(t *testing.T, tab context.Context) page { return look(t, tab, "rest()") }

func look(t *testing.T, tab context.Context, expression string) page {
	t.Helper()
	ctx, cancel := context.WithTimeout(tab, patience)
	defer cancel()
	p, err := chromedp.Run(ctx, chromedp.Evaluate[page](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		t.Fatalf("ask the page for %s: %v", expression, err)
	}
	return p
}

// check compares what the page and the browser's network have seen with what should be.
func check(t *testing.T, p page, network *traffic) {
	t.Helper()
	network.mu.Lock()
	defer network.mu.Unlock()
	t.Logf("page: %+v", p)
	t.Logf("network: %d frames, %d generations answered on one connection", network.frames, network.mostGenerations())
	if p.Closes+p.Errors+network.closed != 0 {
		t.Errorf("the WebSocket ended: %d closes, %d errors; the network saw %d", p.Closes, p.Errors, network.closed)
	}
	if p.Wrong != 0 || p.Sent != p.Answered || p.Sent == 0 || p.Ticks == 0 {
		t.Errorf("%d messages there, %d answers, %d unasked; %d lost, doubled or out of order", p.Sent, p.Answered, p.Ticks, p.Wrong)
	}
	if p.Requests == 0 || p.Failed != 0 || len(network.failed) != 0 {
		t.Errorf("%d requests answered, %d failed; the network says %q", p.Requests, p.Failed, network.failed)
	}
	if network.mostGenerations() < 2 {
		t.Error("no kept-alive connection has moved: none was answered by more than one generation")
	}
	if !strings.Contains(p.Extensions, "permessage-deflate") {
		t.Errorf("no compression was agreed: %q", p.Extensions)
	}
	if p.Events == 0 || p.EventsFrom != "1" {
		t.Errorf("the event stream: %d events, the last from release %q, not from the one that began it", p.Events, p.EventsFrom)
	}
	var served []string
	for _, r := range p.Releases {
		served = append(served, r.Version)
	}
	if want := []string{"1", "2", "3", "4", "3"}; !slices.Equal(served, want) {
		t.Errorf("the WebSocket was served by the releases %v, not %v", served, want)
	}
}
