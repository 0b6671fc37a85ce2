package systemd

import (
	"fmt"
	"os"
	"strings"
)

// FDStore keeps duplicates of descriptors with the service manager, which passes them to the next process of the unit
// (FileDescriptorStoreMax= of the unit). The zero value is ready for use, also by several goroutines; without NOTIFY_SOCKET every
// method does nothing and returns nil. Whether the manager took a descriptor it does not say.
//
// A method may block while PID 1 is stuck, but not for longer than storeTimeout.
type FDStore struct{}

// maxFDName is what systemd allows.
const maxFDName = 255

// Enabled reports whether somebody is there to keep anything.
func (FDStore) Enabled() bool { return os.Getenv("NOTIFY_SOCKET") != "" }

// checkFDName refuses what systemd would silently call "stored".
func checkFDName(name string) error {
	odd := func(r rune) bool { return r <= ' ' || r >= 127 || r == ':' }
	if name == "" || len(name) > maxFDName || strings.ContainsFunc(name, odd) {
		return fmt.Errorf("fd store: name %q: not 1 to %d printable characters without a colon", clip(name, 64), maxFDName)
	}
	return nil
}

// Split parts what systemd passed: the files of its socket units, and those of the fd store, which our names know by their dot.
func Split(passed []*os.File) (sockets, stored []*os.File) {
	for _, f := range passed {
		if strings.Contains(f.Name(), ".") {
			stored = append(stored, f)
		} else {
			sockets = append(sockets, f)
		}
	}
	return sockets, stored
}
