package load_test

import (
	"bufio"
	"context"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/testdata/apps"
	"github.com/hotdeploy/hotdeploy/testdata/load"
)

// The size of load that an upgrade has to stand, against the real app.
func TestLoad_AThousandWebSocketsAndFiftyNewConnectionsASecond(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	addr := startEcho(t)
	// Minutes for a request, and few of them: the test is about the counting, on
	// however busy a machine.
	l, err := load.Start(context.Background(), load.Options{
		Addr: addr, WebSockets: 1000, NewConnsPerSecond: 50,
		OpenTimeout: 2 * time.Minute, RequestTimeout: 2 * time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Ready(ctx); err != nil {
		t.Error(err)
	}
	if err := l.Beat(ctx); err != nil {
		t.Error(err)
	}
	r := l.Stop(ctx)
	if err := r.Err(); err != nil {
		t.Error(err)
	}
	if r.Versions["7"] != 1000 || r.RequestVersions["7"] != r.RequestsOK || r.RequestsOK == 0 {
		t.Errorf("versions: %v and %v", r.Versions, r.RequestVersions)
	}
	t.Logf("%s; %+v; slowest echo %s, driver late %s", r, r.Latency, r.SlowestEcho, r.DriverLate)
}

// startEcho runs wsecho 7 until the end of the test, and checks that it goes
// when the load has gone.
func startEcho(t *testing.T) (addr string) {
	t.Helper()
	cmd := exec.Command(apps.Build(t, "wsecho", "", ""), "-addr", "127.0.0.1:0", "-version", "7", "-print-addr")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		hang := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
		defer hang.Stop()
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("wsecho: %v", err)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}
