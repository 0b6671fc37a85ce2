package supervisor

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

// A ledger that was read can be relied on, whatever was in the file; one that cannot be is refused in words.
func FuzzLedger(f *testing.F) {
	f.Add([]byte(`{"format":1,"service":"echo","boot_id":"b","listeners":[{"id":1}],"held":[1],"generations":[{"number":3,"release":{"version":"1","digest":"` +
		`0000000000000000000000000000000000000000000000000000000000000000"},"process":{"pid":2,"started":1,"cgroup":"/x"},"listeners":[1],"state":"serving"}],"serving":3}`))
	f.Add([]byte(`{"format":2}`))
	f.Add([]byte(`{"format":1,"service":"echo","boot_id":"b","generations":[{"number":1,"state":"draining"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := decodeLedger(b, "echo")
		if err != nil {
			if !errors.Is(err, ErrLedgerDamaged) && !errors.Is(err, ErrLedgerNewer) {
				t.Fatalf("%v", err)
			}
			return
		}
		known := map[int]bool{}
		for _, k := range l.Listeners {
			known[k.ID] = true
		}
		for _, g := range l.Generations {
			for _, id := range g.Listeners {
				if !known[id] {
					t.Fatalf("generation %d has a listener that is not there", g.Number)
				}
			}
			if g.State == api.GenDraining && g.Draining == nil {
				t.Fatalf("generation %d drains since when?", g.Number)
			}
		}
		again, err := json.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeLedger(again, "echo"); err != nil {
			t.Fatalf("what it writes it does not read: %v", err)
		}
	})
}

func TestLedger_DamagedOrNewer_SaysWhatToType(t *testing.T) {
	for content, want := range map[string]error{"{": ErrLedgerDamaged, `{"format":9}`: ErrLedgerNewer, `{"format":1,"service":"other"}`: ErrLedgerDamaged} {
		dir := t.TempDir()
		if err := os.WriteFile(ledgerPath(dir), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := readLedger(dir, "echo")
		if l != nil || !errors.Is(err, want) || !strings.Contains(err.Error(), "systemctl stop echo") {
			t.Errorf("%s: %+v, %v", content, l, err)
		}
	}
}

// The app's user may put anything in its place.
func TestLedger_IsNoFile_IsDamaged(t *testing.T) {
	for name, plant := range map[string]func(path string) error{
		"pipe":   func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"folder": func(path string) error { return os.Mkdir(path, 0o700) },
		"link":   func(path string) error { return os.Symlink("/dev/zero", path) },
		"socket": func(path string) error {
			ln, err := net.Listen("unix", path)
			if err == nil {
				t.Cleanup(func() { ln.Close() })
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := plant(ledgerPath(dir)); err != nil {
				t.Fatal(err)
			}
			if name == "pipe" { // with somebody at its other end, who says nothing
				w, err := os.OpenFile(ledgerPath(dir), os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer w.Close()
			}
			read := make(chan error, 1)
			go func() { _, err := readLedger(dir, "echo"); read <- err }()
			select {
			case err := <-read:
				if !errors.Is(err, ErrLedgerDamaged) || !strings.Contains(err.Error(), "no file") {
					t.Errorf("%v", err)
				}
			case <-time.After(10 * time.Second):
				t.Error("it is waited for")
			}
		})
	}
}

// An older daemon can go on after a newer one that only writes down more.
func TestLedger_WithWhatANewerOneAdds_IsRead(t *testing.T) {
	l, err := decodeLedger([]byte(`{"format":1,"service":"echo","boot_id":"b","added":{"later":1},"listeners":[{"id":1,"more":true}]}`), "echo")
	if err != nil || len(l.Listeners) != 1 {
		t.Errorf("%+v, %v", l, err)
	}
}
