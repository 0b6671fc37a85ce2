package main

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestStore_NextPushIsADeltaAndBothReleasesAreKept(t *testing.T) {
	for _, far := range []bool{false, true} {
		w := newWorld(t)
		store := w.path("kept")
		if far {
			store = "sftp://web-1" + store
		}
		w.project("exec sleep 1000", "10ms", "web-1")
		w.want(0, []string{"push", "--version", "1", "--store", store}, "compressed")
		w.write("app/run.sh", "#!/bin/sh\n# more\nexec sleep 1000\n", 0o755)
		w.want(0, []string{"push", "--version", "2", "--store", store}, "as a delta")
		w.want(0, []string{"push", "--version", "2", "--store", store}, "already serving")
		list := w.want(0, []string{"releases", "--local", "--store", store})
		if !strings.Contains(list.stdout, " 2 ") || !strings.Contains(list.stdout, " 1 ") || strings.Count(list.stdout, "\n") != 3 {
			t.Errorf("kept are:\n%s", list.stdout)
		}
		w.want(0, []string{"releases", "--local", "--store", store, "--json"}, `"service": "chat"`)
		w.want(2, []string{"releases", "--local", "web-1"})
		w.want(0, []string{"releases", "--local", "--store", "none"})
	}
}

func TestStore_CannotBeOpened_PushesWithoutIt(t *testing.T) {
	w := newWorld(t)
	w.project("exec sleep 1000", "10ms", "web-1")
	w.write("a-file", "", 0o644)
	w.want(0, []string{"push", "--version", "1", "--store", w.path("a-file")}, "compressed")
}

func TestStore_BaseOnTheHostIsDamaged_TheReleaseArrivesAllTheSame(t *testing.T) {
	w := newWorld(t)
	w.project("exec sleep 1000", "10ms", "web-1")
	w.write("app/run.sh", "#!/bin/sh\nexec sleep 1000\n"+strings.Repeat("# what is here matters\n", 1000), 0o755)
	w.want(0, []string{"push", "--version", "1", "web-1"})
	onHost := w.path("srv/releases/1/files/run.sh")
	if err := os.Chmod(onHost, 0o755); err != nil {
		t.Fatal(err)
	}
	w.write("srv/releases/1/files/run.sh", "#!/bin/sh\nexec sleep 1000\n"+strings.Repeat("# WHAT is here matters\n", 1000), 0o755)
	w.write("app/run.sh", "#!/bin/sh\nexec sleep 1001\n"+strings.Repeat("# what is here matters\n", 1000), 0o755)
	w.want(0, []string{"push", "--version", "2", "web-1"}, "as a delta", "damaged on this host; sending it without another release as a base", "2 is serving")
}

// What is wrong shows at the beginning of a long upload, whose rest the host does not want.
func TestStore_BaseOnTheHostIsDamaged_NoticedBeforeAllWasSent(t *testing.T) {
	w := newWorld(t)
	w.project("exec sleep 1000", "10ms", "web-1")
	text := strings.Repeat("# what is here matters\n", 1000)
	w.write("app/run.sh", "#!/bin/sh\nexec sleep 1000\n"+text, 0o755)
	w.want(0, []string{"push", "--version", "1", "web-1"})
	onHost := w.path("srv/releases/1/files/run.sh")
	if err := os.Chmod(onHost, 0o755); err != nil {
		t.Fatal(err)
	}
	w.write("srv/releases/1/files/run.sh", "#!/bin/sh\nexec sleep 1000\n"+strings.ToUpper(text), 0o755)
	w.write("app/run.sh", "#!/bin/sh\nexec sleep 1001\n"+text, 0o755)
	toml, err := os.ReadFile(w.path("app/hotdeploy.toml"))
	if err != nil {
		t.Fatal(err)
	}
	w.write("app/hotdeploy.toml", strings.Replace(string(toml), `["run.sh"]`, `["*.sh"]`, 1), 0o644)
	noise := make([]byte, 24<<20)
	rand.NewChaCha8([32]byte{}).Read(noise)
	w.write("app/z.sh", string(noise), 0o755)
	w.want(0, []string{"push", "--version", "2", "web-1"}, "as a delta", "damaged on this host; sending it without another release as a base", "2 is serving")
}

func TestStore_WhatIsKeptIsDamaged_TheReleaseArrivesAllTheSame(t *testing.T) {
	w := newWorld(t)
	w.project("exec sleep 1000", "10ms", "web-1")
	w.want(0, []string{"push", "--version", "1", "web-1"})
	kept, _ := filepath.Glob(w.path("store/contents/*/*"))
	for _, name := range kept {
		if err := os.WriteFile(name, []byte("no good"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.write("app/run.sh", "#!/bin/sh\n# more\nexec sleep 1000\n", 0o755)
	w.want(0, []string{"push", "--version", "2", "web-1"}, "without another release as a base", "2 is serving")
	if kept, _ := filepath.Glob(w.path("store/releases/*")); len(kept) != 1 {
		t.Errorf("%q: a release that is not whole is kept", kept)
	}
	w.write("app/run.sh", "#!/bin/sh\n# more again\nexec sleep 1000\n", 0o755)
	w.want(0, []string{"push", "--version", "3", "web-1"}, "as a delta", "3 is serving")
}
