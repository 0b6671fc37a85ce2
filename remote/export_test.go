package remote

import (
	"testing"

	"github.com/hotdeploy/hotdeploy/internal/spool"
)

// UseDaemonPath makes path the daemon's for one test.
func UseDaemonPath(t *testing.T, path string) {
	t.Helper()
	daemonPath = path
	t.Cleanup(func() { daemonPath = DaemonPath })
}

// Prepare begins to make what is sent to a host that lacks those files and has those releases.
func (b *Bundler) Prepare(lacks []int, has []string) (*spool.Spool, error) {
	return b.bundle(b.recipe(lacks, has))
}
