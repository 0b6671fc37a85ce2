package supervisor

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/systemd"
)

// A stop may last, but systemd must learn soon that nobody is at it any more.
func TestExtend_OnlyWhoIsAliveGetsMoreTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	sock, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	asked, goOn := make(chan struct{}, 100), make(chan struct{})
	defer extend(systemd.Notifier{}, time.Minute, func() { asked <- struct{}{}; <-goOn })()
	<-asked
	b := make([]byte, 100)
	sock.SetReadDeadline(time.Now())
	if n, err := sock.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one that hangs says %q, %v", b[:n], err)
	}
	close(goOn)
	sock.SetReadDeadline(time.Now().Add(20 * time.Second))
	if n, err := sock.Read(b); string(b[:n]) != "EXTEND_TIMEOUT_USEC=5000000" {
		t.Errorf("one that lives says %q, %v", b[:n], err)
	}
	<-asked // and again, as long as it takes
}
