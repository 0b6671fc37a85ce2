//go:build !race

package delta_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/hotdeploy/hotdeploy/internal/delta"
)

// The test binary stands in for a program that makes or applies one delta: what it is called with are three files.
func TestMain(m *testing.M) {
	if do := os.Getenv("DELTA_TEST_DO"); do != "" {
		if err := child(do, os.Args[1:]); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		os.Stdout.WriteString(peak())
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(do string, files []string) error {
	var in [2]*io.SectionReader
	for i := range in {
		f, err := os.Open(files[i])
		if err != nil {
			return err
		}
		fi, err := f.Stat()
		if err != nil {
			return err
		}
		in[i] = io.NewSectionReader(f, 0, fi.Size())
	}
	out, err := os.Create(files[2])
	if err != nil {
		return err
	}
	if do == "make" {
		return delta.Make(context.Background(), out, in[0], in[1])
	}
	limit := int64(1 << 40)
	if do == "refuse" {
		limit = 16 << 20
	}
	err = delta.Apply(context.Background(), out, in[0], in[1], limit)
	if do != "refuse" {
		return err
	}
	if !errors.Is(err, delta.ErrMalformed) && !errors.Is(err, delta.ErrTooLarge) {
		return fmt.Errorf("not refused: %w", err)
	}
	if fi, err := out.Stat(); err != nil || fi.Size() > limit {
		return fmt.Errorf("%d bytes came out of it, %w", fi.Size(), err)
	}
	return nil
}

// peak is the most memory that this process ever had, in kB. (What the kernel tells a parent counts the parent's own too.)
func peak() string {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return "0"
	}
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	kB, _, _ := strings.Cut(strings.TrimSpace(after), " ")
	return kB
}

// run returns the peak of the child's memory, in MiB.
func run(t *testing.T, do string, files ...string) int64 {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, files...)
	cmd.Env = append(os.Environ(), "DELTA_TEST_DO="+do)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", do, err)
	}
	kB, err := strconv.ParseInt(string(out), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kB >> 10
}

// writeLarge writes n MiB that repeat nowhere, behind a beginning.
func writeLarge(t *testing.T, path string, begin []byte, n int) int64 {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(begin); err != nil {
		t.Fatal(err)
	}
	block := random(1, 1<<20)
	for i := range n {
		for k := 0; k < len(block); k += 32 {
			binary.LittleEndian.PutUint64(block[k:], binary.LittleEndian.Uint64(block[k:])*0x9e3779b97f4a7c15+uint64(i))
		}
		if _, err := f.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	return int64(len(begin)) + int64(n)<<20
}

func TestLargeFiles_BoundedMemory(t *testing.T) {
	dir := t.TempDir()
	old, new, d, out := filepath.Join(dir, "old"), filepath.Join(dir, "new"), filepath.Join(dir, "delta"), filepath.Join(dir, "out")
	writeLarge(t, old, nil, 220)
	size := writeLarge(t, new, random(2, 5_000), 220)
	making := run(t, "make", old, new, d)
	applying := run(t, "apply", old, d, out)
	fi, err := os.Stat(d)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes from %d; making takes %d MiB, applying %d MiB", size, fi.Size(), making, applying)
	if err := exec.CommandContext(t.Context(), "cmp", new, out).Run(); err != nil {
		t.Errorf("what was applied is another file: %v", err)
	}
	if fi.Size() > 7_000 {
		t.Errorf("the delta has %d bytes", fi.Size())
	}
	if making > 400 || applying > 64 {
		t.Errorf("making took %d MiB, applying %d MiB", making, applying)
	}
}

// A hostile delta is refused, and until it is it takes no more than a good one.
func TestHostileDeltas_AreRefusedInLittleMemory(t *testing.T) {
	dir := t.TempDir()
	old, d := filepath.Join(dir, "old"), filepath.Join(dir, "delta")
	size := writeLarge(t, old, nil, 1)
	for name, raw := range delta.Hostile(size) {
		if err := os.WriteFile(d, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if took := run(t, "refuse", old, d, filepath.Join(dir, "out")); took > 64 {
			t.Errorf("%s took %d MiB", name, took)
		} else {
			t.Logf("%s (%d bytes): %d MiB", name, len(raw), took)
		}
	}
}

// The most that a delta can make Apply keep: everything is literal, as with a first upload.
func TestLargeLiterals_BoundedMemory(t *testing.T) {
	dir := t.TempDir()
	none, new, d, out := filepath.Join(dir, "none"), filepath.Join(dir, "new"), filepath.Join(dir, "delta"), filepath.Join(dir, "out")
	writeLarge(t, none, nil, 0)
	writeLarge(t, new, words(1, 20<<20), 60)
	making := run(t, "make", none, new, d)
	applying := run(t, "apply", none, d, out)
	t.Logf("making takes %d MiB, applying %d MiB", making, applying)
	if err := exec.CommandContext(t.Context(), "cmp", new, out).Run(); err != nil {
		t.Errorf("what was applied is another file: %v", err)
	}
	if applying > 64 {
		t.Errorf("applying took %d MiB", applying)
	}
}
