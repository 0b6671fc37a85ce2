package remote

import "testing"

// UseDaemonPath makes path the daemon's for one test.
func UseDaemonPath(t *testing.T, path string) {
	t.Helper()
	daemonPath = path
	t.Cleanup(func() { daemonPath = DaemonPath })
}
