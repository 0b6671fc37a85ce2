//go:build !race

package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/hotdeploy/hotdeploy/internal/bundle"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

const (
	mostMemory = 64 << 10 // kB: what making a release may take of a host, all in all
	largeFile  = 210      // MiB
	manyFiles  = 20_000
)

func init() {
	// arguments: the store's folder, and a folder with the manifest, the bundle and its id
	children["bring a bundle"] = func(args []string) error {
		s, err := Open(args[0], "chat")
		if err != nil {
			return err
		}
		manifest, err := os.ReadFile(filepath.Join(args[1], "manifest"))
		if err != nil {
			return err
		}
		id, err := os.ReadFile(filepath.Join(args[1], "id"))
		if err != nil {
			return err
		}
		b, err := os.Open(filepath.Join(args[1], "bundle"))
		if err != nil {
			return err
		}
		defer b.Close()
		facts, ctx := here, childT{}.Context()
		facts.Bundle = true
		p, err := s.Plan(ctx, manifest, facts)
		if err == nil {
			err = s.Receive(ctx, p.Digest, string(id), 0, b)
		}
		if err == nil {
			err = s.Rebuild(ctx, p.Digest, string(id))
		}
		if err == nil {
			_, err = s.Complete(ctx, p.Digest)
		}
		status, _ := os.ReadFile("/proc/self/status")
		_, peak, _ := strings.Cut(string(status), "VmHWM:")
		fmt.Print(strings.Fields(peak)[0])
		return errors.Join(err, s.Close())
	}
}

// bring has a child process take a release in, as the daemon would, and returns the peak of its memory in kB.
func bring(t *testing.T, store string, p, base *release.Packed) int {
	t.Helper()
	source := func(p *release.Packed) bundle.Source {
		return bundle.Source{Manifest: p.Manifest, Open: func(f *release.File) (bundle.File, error) { return p.Open(f.SHA256) }}
	}
	r := bundle.Choose(p.Manifest, bundle.Lacks(p.Manifest, nil), nil, "")
	var from bundle.Source
	if base != nil {
		from = source(base)
		r = bundle.Choose(p.Manifest, bundle.Lacks(p.Manifest, base.Manifest), base.Manifest, base.Digest)
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "manifest"), string(p.Bytes))
	write(t, filepath.Join(dir, "id"), r.ID(p.Digest))
	out, err := os.Create(filepath.Join(dir, "bundle"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := bundle.Write(t.Context(), out, r, from, source(p)); err != nil {
		t.Fatal(err)
	}
	cmd := childCommand(t, "bring a bundle", "", store, dir)
	cmd.Stderr = os.Stderr
	text, err := cmd.Output()
	if err != nil {
		t.Fatalf("the host's side: %v", err)
	}
	kB, err := strconv.Atoi(string(text))
	if err != nil {
		t.Fatal(err)
	}
	return kB
}

// writeLarge writes a file that repeats nowhere, behind a beginning, and is half text.
func writeLarge(t *testing.T, name string, begin string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(begin); err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 1<<20)
	x := uint64(1)
	for i := range largeFile {
		for k := 0; k < len(block); k += 8 {
			x = x*0x9e3779b97f4a7c15 + uint64(i) + 1
			v := x ^ x>>29
			if k > len(block)/2 {
				v = v&0x0f0f0f0f0f0f0f0f | 0x6060606060606060
			}
			binary.LittleEndian.PutUint64(block[k:], v)
		}
		if _, err := f.Write(block); err != nil {
			t.Fatal(err)
		}
	}
}

func TestALargeRelease_TakesLittleMemoryOfTheHost(t *testing.T) {
	store, dir := t.TempDir(), t.TempDir()
	t.Cleanup(func() { makeAllWritable(store) })
	if err := os.WriteFile(filepath.Join(dir, "run"), []byte(runScript), 0o755); err != nil {
		t.Fatal(err)
	}
	large := filepath.Join(dir, "large")
	writeLarge(t, large, "")
	old := packed(t, dir, "1")
	first := bring(t, store, old, nil)
	was := t.TempDir() // what the delta is based on must stay readable here
	if err := errors.Join(os.Rename(large, filepath.Join(was, "large")), os.WriteFile(filepath.Join(was, "run"), []byte(runScript), 0o755)); err != nil {
		t.Fatal(err)
	}
	old = packed(t, was, "1")
	writeLarge(t, large, strings.Repeat("it has grown at its start\n", 200))
	second := bring(t, store, packed(t, dir, "2"), old)
	t.Logf("the first release took %d kB, the second %d kB", first, second)
	if max(first, second) > mostMemory {
		t.Errorf("more than the %d kB that it may take", mostMemory)
	}
	s := open(t, store)
	whole(t, s, "2")
}

func TestAReleaseOfManyFiles_TakesLittleMemoryOfTheHost(t *testing.T) {
	store, dir := t.TempDir(), t.TempDir()
	t.Cleanup(func() { makeAllWritable(store) })
	if err := os.WriteFile(filepath.Join(dir, "run"), []byte(runScript), 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range manyFiles {
		name := filepath.Join(dir, fmt.Sprintf("node_modules/package-%d/lib", i/50), fmt.Sprintf("module-%d.js", i))
		if i%50 == 0 {
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(name, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	kB := bring(t, store, packed(t, dir, "1"), nil)
	t.Logf("%d files took %d kB", manyFiles, kB)
	if kB > mostMemory {
		t.Errorf("more than the %d kB that it may take", mostMemory)
	}
}
