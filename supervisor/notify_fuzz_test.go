package supervisor

import (
	"context"
	"strings"
	"testing"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/systemd"
)

// FuzzNotifyDatagram: whatever arrives at the notify socket, with however many descriptors, the supervisor is well afterwards. What an app of
// ours says so is a line of text at most.
func FuzzNotifyDatagram(f *testing.F) {
	for _, seed := range []string{"READY=1", "READY=1\nSTATUS=up\nMAINPID=1", "EXTEND_TIMEOUT_USEC=18446744073709551615", "STATUS=\x1b[31m\xff\x00", "BARRIER=1",
		"FDSTORE=1\nFDNAME=x", "ERRNO=-1", "=", "WATCHDOG=trigger\nWATCHDOG=1", strings.Repeat("STATUS=x\n", 500), ""} {
		f.Add([]byte(seed), uint8(len(seed)))
	}
	r := emptyRig(f)
	r.start()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { unix.Close(fd) })
	to := &unix.SockaddrUnix{Name: r.s.notified.Path()}
	f.Fuzz(func(t *testing.T, b []byte, descriptors uint8) {
		var rights []byte
		if descriptors > 0 {
			rights = unix.UnixRights(make([]int, min(descriptors, 253))...)
		}
		if err := unix.Sendmsg(fd, b, rights, to, 0); err != nil && err != unix.EMSGSIZE {
			t.Fatal(err)
		}
		if st, err := r.client.Status(context.Background()); err != nil || st.State != api.StateEmpty {
			t.Fatalf("%s, %v", st.Text, err)
		}
		msg, err := systemd.ParseMessage(b)
		if err != nil {
			return
		}
		g := &generation{ready: make(chan struct{}), extend: make(chan time.Duration, 1)}
		g.notified(msg)
		g.notified(msg)
		if said := g.saidReady; said != msg.Ready || len(g.text) > 1<<10 || strings.ContainsFunc(g.text, func(c rune) bool { return !unicode.IsPrint(c) }) {
			t.Errorf("%q: ready %v, %q", b, said, g.text)
		}
		select {
		case <-g.ready:
		default:
			if msg.Ready {
				t.Errorf("%q: nobody hears that it is ready", b)
			}
		}
	})
}
