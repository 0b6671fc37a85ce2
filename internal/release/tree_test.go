package release

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// Our reading of symlinks must be the kernel's. Small random trees, full of links, are made on the disk; what the tree says
// of each link is held against what the operating system says, with os.Root as judge of what leaves the directory.
func TestTree_FollowsSymlinksAsTheKernelDoes(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	ends, leaves := 0, 0
	for range 150 {
		files := randomTree(r)
		dir := t.TempDir()
		makeTree(t, dir, files)
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		tree := newTree(files, nil)
		for i := range files {
			f := &files[i]
			if f.Link == "" {
				continue
			}
			end, err := tree.resolve(f, 0)
			_, kernelErr := root.Stat(f.Path)
			if (err == nil) != (kernelErr == nil) {
				t.Fatalf("%s -> %s: we say %v, the kernel says %v, in\n%v", f.Path, f.Link, err, kernelErr, files)
			}
			if err != nil {
				leaves++
				continue
			}
			ends++
			if real, err := filepath.EvalSymlinks(filepath.Join(dir, f.Path)); err != nil || real != filepath.Join(dir, end.path) {
				t.Fatalf("%s -> %s: we end at %q, the kernel at %s, %v, in\n%v", f.Path, f.Link, end.path, real, err, files)
			}
		}
		root.Close()
	}
	if ends < 50 || leaves < 50 {
		t.Errorf("only %d links that are right and %d that are not: the trees are too plain", ends, leaves)
	}
}

// randomTree makes up to 12 files and links, none below another.
func randomTree(r *rand.Rand) []File {
	names := []string{"a", "b", "c"}
	taken := map[string]bool{}
	var files []File
	for range 12 {
		p := names[r.IntN(3)]
		for range r.IntN(3) {
			p = path.Join(p, names[r.IntN(3)])
		}
		if inTheWay(taken, p) {
			continue
		}
		taken[p] = true
		f := file(p)
		if r.IntN(3) > 0 {
			f = link(p, randomTarget(r, names))
		}
		files = append(files, f)
	}
	return files
}

func inTheWay(taken map[string]bool, p string) bool {
	for q := range taken {
		if q == p || strings.HasPrefix(q, p+"/") || strings.HasPrefix(p, q+"/") {
			return true
		}
	}
	return false
}

func randomTarget(r *rand.Rand, names []string) string {
	parts := []string{}
	for range 1 + r.IntN(4) {
		parts = append(parts, append(names, "..", "..", ".")[r.IntN(6)])
	}
	return strings.Join(parts, "/")
}

func makeTree(t *testing.T, dir string, files []File) {
	t.Helper()
	for _, f := range files {
		p := filepath.Join(dir, f.Path)
		err := os.MkdirAll(filepath.Dir(p), 0o755)
		if err == nil && f.Link != "" {
			err = os.Symlink(f.Link, p)
		} else if err == nil {
			err = os.WriteFile(p, nil, os.FileMode(f.Mode))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Whatever Validate takes, a release that is written as it says touches nothing outside its directory.
func TestManifestValidate_WhatItTakesStaysInside(t *testing.T) {
	r := rand.New(rand.NewPCG(rand.Uint64(), 0))
	taken := 0
	for n := range 600 {
		m := manifest(randomTree(r)...)
		m.Spec.Run.Shared = nil
		if m.Validate() != nil {
			continue
		}
		taken++
		top := t.TempDir()
		dir := filepath.Join(top, "release")
		makeTree(t, dir, m.Files)
		for _, f := range m.Files {
			real, err := filepath.EvalSymlinks(filepath.Join(dir, f.Path))
			if err != nil || real != dir && !strings.HasPrefix(real, dir+"/") {
				t.Fatalf("tree %d: %s is %s, %v", n, f.Path, real, err)
			}
		}
		if entries, err := os.ReadDir(top); err != nil || len(entries) != 1 {
			t.Fatal(fmt.Sprint("something was made outside: ", entries, err))
		}
	}
	if taken < 10 {
		t.Errorf("only %d trees were valid", taken)
	}
}
