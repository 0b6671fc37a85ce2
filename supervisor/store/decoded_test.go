package store

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"weak"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// manifestOf is one of about so many bytes.
func manifestOf(t *testing.T, version string, size int) (raw []byte, digest string) {
	t.Helper()
	_, raw, digest = app{version: version, edit: func(m *release.Manifest) {
		for i := range size / 320 {
			m.Files = append(m.Files, fileOf(fmt.Sprintf("z%07d-%s", i, strings.Repeat("x", 200)), "x"))
		}
	}}.manifest(t)
	return raw, digest
}

func TestDecoded_WhatItForgets_TakesNoMemory(t *testing.T) {
	var d decoded
	var first weak.Pointer[release.Manifest]
	for i := range 4 {
		raw, digest := manifestOf(t, fmt.Sprint(i), maxDecoded*3/10)
		m, err := d.decode(digest, raw)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = weak.Make(m)
		}
	}
	runtime.GC()
	if len(d.list) != 3 || first.Value() != nil {
		t.Errorf("%d of them are kept, the first one: %t", len(d.list), first.Value() != nil)
	}
}

func TestDecoded_TooLargeOne_PushesNoneOut(t *testing.T) {
	var d decoded
	for i, size := range []int{1000, maxDecoded * 5 / 4} {
		raw, digest := manifestOf(t, fmt.Sprint(i), size)
		if m, err := d.decode(digest, raw); err != nil || m.Version != fmt.Sprint(i) {
			t.Fatal(err)
		}
	}
	if len(d.list) != 1 || d.list[0].manifest.Version != "0" {
		t.Errorf("it keeps %d of %d bytes", len(d.list), d.size)
	}
}

func TestDecoded_SmallOnes_AreNotKeptWithoutEnd(t *testing.T) {
	var d decoded
	for i := range 2 * maxManifests {
		raw, digest := manifestOf(t, fmt.Sprint(i), 0)
		if _, err := d.decode(digest, raw); err != nil {
			t.Fatal(err)
		}
	}
	size := 0
	for _, m := range d.list {
		size += m.size
	}
	if len(d.list) != maxManifests || d.size != size || d.list[maxManifests-1].manifest.Version != fmt.Sprint(2*maxManifests-1) {
		t.Errorf("%d of %d bytes are kept, of which it knows %d", len(d.list), size, d.size)
	}
}
