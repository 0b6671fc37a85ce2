package browser

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
)

// patience is for a loaded machine; whatever goes wrong is seen at once.
const patience = time.Minute

// needChromium returns the browser's path. Where there is none the test is skipped, loudly; in CI that is a failure.
func needChromium(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal("CI must run the test with a browser: ", err)
	}
	if err != nil {
		t.Skip("SKIPPED, NOT TESTED: a browser: ", err)
	}
	return path
}

// startChromium returns a context whose chromedp calls go to a fresh browser, and what its network does. Both end with the test.
func startChromium(t *testing.T, ctx context.Context, path string) (context.Context, *traffic) {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.WSURLReadTimeout(patience),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"), // it is not to talk to anybody else
		chromedp.Flag("no-sandbox", os.Getuid() == 0))                              // its sandbox refuses root
	ctx, cancel := chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx, chromedp.WithErrorf(t.Logf))
	t.Cleanup(cancel)
	seen := &traffic{generations: map[float64]map[string]bool{}}
	if err := chromedp.Listen(ctx, seen.note); err != nil {
		t.Fatal("start chromium: ", err)
	}
	if _, err := chromedp.Call(ctx, network.Enable, network.EnableParams{}); err != nil {
		t.Fatal("watch the network: ", err)
	}
	return ctx, seen
}

// traffic is what the browser's network reports.
type traffic struct {
	mu          sync.Mutex                  // protects what follows; events come from another goroutine
	generations map[float64]map[string]bool // who answered, by connection
	failed      []string
	closed      int // WebSockets
	frames      int // to and from them
}

func (n *traffic) note(event any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch e := event.(type) {
	case *network.EventResponseReceived:
		if n.generations[e.Response.ConnectionID] == nil {
			n.generations[e.Response.ConnectionID] = map[string]bool{}
		}
		who, _ := e.Response.Headers["X-Generation"].(string)
		n.generations[e.Response.ConnectionID][who] = true
	case *network.EventLoadingFailed:
		n.failed = append(n.failed, e.ErrorText)
	case *network.EventWebSocketClosed:
		n.closed++
	case *network.EventWebSocketFrameError:
		n.failed = append(n.failed, e.ErrorMessage)
	case *network.EventWebSocketFrameSent, *network.EventWebSocketFrameReceived:
		n.frames++
	}
}

// mostGenerations is how many generations answered on one HTTP connection.
func (n *traffic) mostGenerations() (most int) {
	for _, who := range n.generations {
		most = max(most, len(who))
	}
	return most
}

// takePicture writes what the browser shows to the folder BROWSER_SHOTS.
func takePicture(t *testing.T, ctx context.Context, name string) {
	t.Helper()
	dir := os.Getenv("BROWSER_SHOTS")
	if dir == "" {
		dir = t.ArtifactDir()
	}
	if err := chromedp.Do(ctx, chromedp.EmulateViewport(1000, 620)); err != nil {
		t.Fatal("size the page: ", err)
	}
	png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		t.Fatal("take a picture: ", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, png, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Logf("picture: %s (%d bytes)", path, len(png))
}
