package supervisor

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

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
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if v, ok := strings.CutPrefix(sc.Text(), "MemAvailable:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/meminfo has no MemAvailable")
}
