package upgrade

import (
	"fmt"
	"log"
	"os"
	"runtime"
	"runtime/pprof"
)

// profiled writes profiles of a process into the folder that UPGRADE_TEST_PROFILE names, when what it returns is called.
func profiled() func() {
	dir := os.Getenv("UPGRADE_TEST_PROFILE")
	if dir == "" {
		return func() {}
	}
	create := func(kind string) *os.File {
		f, err := os.Create(fmt.Sprintf("%s/%s.%d", dir, kind, os.Getpid()))
		if err != nil {
			log.Fatal(err)
		}
		return f
	}
	runtime.MemProfileRate = 4096
	cpu := create("cpu")
	pprof.StartCPUProfile(cpu)
	return func() {
		pprof.StopCPUProfile()
		cpu.Close()
		allocs := create("allocs")
		pprof.Lookup("allocs").WriteTo(allocs, 0)
		allocs.Close()
	}
}
