package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/testdata/lab"
)

// What all tests share; set by TestMain and never changed.
var (
	world   *lab.Lab
	bin     string // folder with the programs under test, a copy of our own: somebody may build meanwhile
	source  string // the root of the source tree
	private string // a folder that goes with the test process
)

// The machines, by what tests may do with them.
func common() *lab.Machine { return world.Machine(1) } // stays up
func other() *lab.Machine  { return world.Machine(2) } // is rebooted and crashed
func bare() *lab.Machine   { return world.Machine(3) } // nothing of ours is on it, until TestSetup

// soaking makes tests that can be longer as long as they are meant to be: make soak.
var soaking = flag.Bool("soak", false, "the long form of the tests that have one")

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if err := lab.Supported(); err != nil {
		fmt.Printf("##### END-TO-END TESTS SKIPPED, NOT TESTED: %v #####\n", err)
		if os.Getenv("CI") == "true" {
			return 1
		}
		return 0
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if err := prepare(ctx); err != nil {
		fmt.Println("end-to-end tests:", err)
		return 1
	}
	defer os.RemoveAll(private)
	began := time.Now()
	var err error
	if world, err = lab.Open(ctx, 3); err != nil {
		fmt.Println("end-to-end tests: boot the machines:", err)
		return 1
	}
	fmt.Printf("three machines booted in %s\n", time.Since(began).Round(time.Millisecond))
	status := m.Run()
	if err := world.Close(); err != nil {
		fmt.Println("end-to-end tests: close the lab:", err)
		return 1
	}
	return status
}

func prepare(ctx context.Context) error {
	var err error
	if source, err = filepath.Abs("../.."); err != nil {
		return err
	}
	if private, err = os.MkdirTemp("", "hotdeploy-e2e-"); err != nil {
		return err
	}
	from := os.Getenv("HOTDEPLOY_BIN")
	if from == "" {
		from = filepath.Join(source, "bin")
		if text, err := exec.CommandContext(ctx, "make", "-C", source, "build").CombinedOutput(); err != nil { // what lies there may be of another day
			return fmt.Errorf("make build: %w\n%s", err, text)
		}
	}
	bin = filepath.Join(private, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"hotdeploy", daemonName} {
		if text, err := exec.CommandContext(ctx, "cp", filepath.Join(from, name), bin).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", name, err, text)
		}
	}
	return nil
}

const daemonName = "hotdeployd-linux-" + runtime.GOARCH
