package upgrade

import (
	"fmt"
	"log"
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"

	"golang.org/x/sys/unix"
)

// profileEnv names a folder for profiles: of the CPU time that a process spends on each handoff, or of its allocations.
const profileEnv = "UPGRADE_TEST_PROFILE"

// profile writes them, from one signal to the next.
func profile() {
	dir := os.Getenv(profileEnv)
	if dir == "" {
		return
	}
	kinds := []string{"cpu", "allocs"}
	if os.Getenv(profileEnv+"_KIND") == "allocs" {
		runtime.MemProfileRate = 512
		kinds = kinds[1:]
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGUSR1)
	go func() {
		for _, part := range []string{"take", "give"} {
			f, err := os.Create(fmt.Sprintf("%s/%s.%s.%d", dir, kinds[0], part, os.Getpid()))
			if err != nil {
				log.Fatal(err)
			}
			<-signals
			if kinds[0] == "cpu" {
				pprof.StartCPUProfile(f)
			}
			<-signals
			if kinds[0] == "cpu" {
				pprof.StopCPUProfile()
			} else {
				pprof.Lookup("allocs").WriteTo(f, 0)
			}
			f.Close()
		}
	}()
}

// profileParts sends the signal, before a handoff and after it. The first process only gives: it gets two more.
func profileParts(list ...*process) {
	if os.Getenv(profileEnv) != "" {
		for _, p := range list {
			p.cmd.Process.Signal(unix.SIGUSR1)
		}
	}
}
