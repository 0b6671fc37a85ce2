package supervisor

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

// roomInMemory refuses an upgrade when a second generation as large as the serving one would not fit: better nothing than the
// kernel killing one of them.
func (s *Supervisor) roomInMemory() error {
	var serving *generation
	s.do(func() { serving = s.serving })
	available, err := availableMemory()
	if serving == nil || err != nil {
		return nil // nothing to compare with, or no way to tell
	}
	if need := serving.group.RSS(); need > available {
		e := api.ErrMemory.With(fmt.Sprintf("the serving generation uses %d MiB, and only %d MiB are available for a second one", need>>20, available>>20))
		e.Hint = "free memory on the host, or end draining generations: hotdeploy retire"
		return e
	}
	return nil
}

// availableMemory is MemAvailable of proc(5), in bytes.
func availableMemory() (int64, error) {
	kib, err := lineOf("/proc/meminfo", "MemAvailable:")
	return kib << 10, err
}

// oomKills is how many processes the kernel has killed for want of memory since the boot, those of limited cgroups included.
func oomKills() (int64, error) { return lineOf("/proc/vmstat", "oom_kill ") }

// lineOf is the number in a line of a file of proc(5).
func lineOf(path, begin string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if v, ok := strings.CutPrefix(sc.Text(), begin); ok {
			return strconv.ParseInt(strings.Fields(v)[0], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, begin)
}

// endedEarly is the error of a generation that ended when it should not have. Nobody but the kernel sends SIGKILL to one that is starting; whether
// for want of memory is told by its count.
func (g *generation) endedEarly(code *api.Error, when string) error {
	text := fmt.Sprintf("release %s %s %s", g.rel.Version, g.group.Exit(), when)
	if kills, err := oomKills(); err != nil || g.oomBefore == nil || kills <= *g.oomBefore || g.group.Exit().Signal != syscall.SIGKILL {
		return code.With(text)
	}
	e := api.ErrMemory.With(text + ": the kernel killed for want of memory")
	e.Hint = "free memory on the host, raise the limit of the service (MemoryMax=), or end draining generations: hotdeploy retire"
	return e
}
