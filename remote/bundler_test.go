package remote_test

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hotdeploy/hotdeploy/internal/bundle"
	"github.com/hotdeploy/hotdeploy/internal/library"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/internal/spool"
	"github.com/hotdeploy/hotdeploy/remote"
)

// counted is a folder that counts how often a content is opened: each time a delta is made of it.
type counted struct {
	library.Folder
	contents atomic.Int64
}

func (c *counted) Open(name string) (library.File, int64, error) {
	if strings.HasPrefix(name, "contents/") {
		c.contents.Add(1)
	}
	return c.Folder.Open(name)
}

func versionOf(t *testing.T, version, text string) *release.Packed {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "run"), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	o := release.PackOptions{Dir: dir, Service: "chat", Version: version, Files: []string{"run"}}
	o.Spec.Run.Command = []string{"./run"}
	o.Spec.SetDefaults()
	rel, err := release.Pack(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return rel
}

func TestBundler_ManyHosts_OneDeltaForEachBase(t *testing.T) {
	folder, err := library.Dir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	kept := &counted{Folder: folder}
	l := library.New(kept)
	t.Cleanup(func() { l.Close() })
	text := strings.Repeat("# what is the same\n", 500)
	bases := []*release.Packed{versionOf(t, "1", text), versionOf(t, "2", text+"# more\n"), versionOf(t, "3", text+"# and more\n")}
	for _, base := range bases {
		if err := l.Add(t.Context(), base); err != nil {
			t.Fatal(err)
		}
	}
	next := versionOf(t, "4", "# new\n"+text)
	b := remote.NewBundler(t.Context(), next, l)
	t.Cleanup(b.Close)
	b.Guess()
	lacks := bundle.Lacks(next.Manifest, nil)
	const hosts = 30
	var got [hosts]*spool.Spool
	var all sync.WaitGroup
	for i := range hosts {
		all.Go(func() {
			s, err := b.Prepare(lacks, []string{bases[i%3].Digest, "unknown"})
			if err == nil {
				got[i] = s
				_, err = io.Copy(io.Discard, s.Reader(t.Context(), 0, nil))
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for i, s := range got {
		if s != got[i%3] {
			t.Errorf("host %d gets one of its own", i)
		}
	}
	if n := kept.contents.Load(); n != 3 {
		t.Errorf("contents were opened %d times for 3 bases", n)
	}
}
