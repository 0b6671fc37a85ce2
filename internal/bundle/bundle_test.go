package bundle_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/hotdeploy/hotdeploy/internal/bundle"
	"github.com/hotdeploy/hotdeploy/internal/delta"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// tree is a release's files in memory, by path.
type tree map[string]string

type memory struct{ *strings.Reader }

func (memory) Close() error { return nil }

func (tr tree) source() bundle.Source {
	m := &release.Manifest{}
	contents := map[string]string{}
	for p, text := range tr {
		sha := release.Digest([]byte(text))
		contents[sha] = text
		m.Files = append(m.Files, release.File{Path: p, Size: int64(len(text)), SHA256: sha})
	}
	m.Files = append(m.Files, release.File{Path: "a/link", Link: "somewhere"})
	slices.SortFunc(m.Files, func(a, b release.File) int { return strings.Compare(a.Path, b.Path) })
	return bundle.Source{Manifest: m, Open: func(f *release.File) (bundle.File, error) {
		return memory{strings.NewReader(contents[f.SHA256])}, nil
	}}
}

// kept collects what comes out of a bundle, by digest of what it should be.
type kept map[string]*bytes.Buffer

func (k kept) keep(f *release.File) (io.WriteCloser, error) {
	k[f.SHA256] = new(bytes.Buffer)
	return closer{k[f.SHA256]}, nil
}

type closer struct{ io.Writer }

func (closer) Close() error { return nil }

func write(t testing.TB, r bundle.Recipe, base, to bundle.Source) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := bundle.Write(t.Context(), &out, r, base, to); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// checkIdentity brings to by way of a bundle that is based on old, and returns the bundle.
func checkIdentity(t testing.TB, old, to tree) []byte {
	t.Helper()
	base, next := old.source(), to.source()
	lacks := bundle.Lacks(next.Manifest, base.Manifest)
	r := bundle.Choose(next.Manifest, lacks, base.Manifest, release.Digest([]byte("base")))
	raw := write(t, r, base, next)
	if again := write(t, r, base, next); !bytes.Equal(raw, again) {
		t.Fatal("the same recipe gives two bundles")
	}
	b, err := bundle.Open(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	from := base
	if b.Base == "" {
		from = bundle.Source{}
	}
	got := kept{}
	if err := b.Apply(t.Context(), from, next.Manifest, got.keep); err != nil {
		t.Fatal(err)
	}
	if len(got) != len(lacks) {
		t.Fatalf("%d contents came out of it, %d were lacking", len(got), len(lacks))
	}
	for sha, text := range got {
		if release.Digest(text.Bytes()) != sha {
			t.Fatalf("content %.12s is another (%d bytes)", sha, text.Len())
		}
	}
	return raw
}

func TestBundle_IdentityOfAnyTrees(t *testing.T) {
	for seed := range uint64(25) {
		r := rand.New(rand.NewPCG(seed, 3))
		old := tree{}
		for i := range r.IntN(30) {
			old[fmt.Sprintf("d%d/file %d.txt", i%4, i)] = content(r)
		}
		next := tree{}
		for p, text := range old {
			switch r.IntN(6) {
			case 0: // gone
			case 1:
				next["moved/"+p] = text
			case 2:
				at := r.IntN(len(text) + 1)
				next[p] = text[:at] + "changed" + text[at:]
			case 3:
				next["renamed/"+p+".txt"] = text + "and more"
			default:
				next[p] = text
			}
		}
		for i := range r.IntN(5) {
			next[fmt.Sprint("new", i)] = content(r)
		}
		checkIdentity(t, old, next)
	}
}

// content is of one of the hard kinds.
func content(r *rand.Rand) string {
	n := r.IntN(3000)
	switch r.IntN(5) {
	case 0:
		return ""
	case 1:
		return strings.Repeat("x", n)
	case 2:
		return strings.Repeat("some text ", n/10)
	case 3:
		return string(make([]byte, n))
	}
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

func TestBundle_CostsWhatIsNew(t *testing.T) {
	big := content(rand.New(rand.NewPCG(1, 1))) + strings.Repeat("0123456789", 4_000)
	r := rand.New(rand.NewPCG(8, 8))
	noise := make([]byte, 50_000)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	for name, c := range map[string]struct {
		old, to tree
		most    int
	}{
		"moved, renamed and doubled": {tree{"a": big, "b": string(noise)}, tree{"c/a": big, "d": string(noise), "e": big}, 60},
		"renamed and changed":        {tree{"app.1a2b3c.js": string(noise)}, tree{"app.4d5e6f.js": "x" + string(noise)}, 200},
		"cut in two":                 {tree{"data.bin": string(noise)}, tree{"data.bin": string(noise[:20_000]), "more.bin": string(noise[20_000:])}, 250},
		"put together":               {tree{"a.bin": string(noise[:20_000]), "b.bin": string(noise[20_000:])}, tree{"b.bin": string(noise)}, 20_300},
	} {
		if raw := checkIdentity(t, c.old, c.to); len(raw) > c.most {
			t.Errorf("%s: %d bytes, more than %d", name, len(raw), c.most)
		}
	}
}

func TestRanges(t *testing.T) {
	list := []int{0, 1, 2, 7, 9, 10}
	r := bundle.RangesOf(list)
	if got, err := r.List(11); len(r) != 3 || err != nil || !slices.Equal(got, list) {
		t.Errorf("%v: %v, %v", r, got, err)
	}
	for _, bad := range []bundle.Ranges{{{0, 11}}, {{-1, 2}}, {{5, 4}}, {{0, 10}, {0, 0}}, {{0, 1 << 62}}} {
		if _, err := bad.List(11); !errors.Is(err, bundle.ErrMalformed) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

func FuzzBundle(f *testing.F) {
	old := tree{"a": strings.Repeat("some text ", 300), "b": "x"}
	to := tree{"a": "now: " + strings.Repeat("some text ", 300), "c": "new"}
	f.Add(checkIdentity(f, old, to))
	f.Add(checkIdentity(f, tree{}, to))
	base, next := old.source(), to.source()
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, err := bundle.Open(bytes.NewReader(raw), int64(len(raw)))
		if err != nil {
			return
		}
		got := kept{}
		err = b.Apply(t.Context(), base, next.Manifest, got.keep)
		total := 0
		for _, text := range got {
			total += text.Len()
		}
		if total > 4*4000 {
			t.Fatalf("%d bytes came out of it: %v", total, err)
		}
		if err != nil && !errors.Is(err, bundle.ErrMalformed) && !errors.Is(err, delta.ErrMalformed) && !errors.Is(err, delta.ErrTooLarge) &&
			!errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("an error of another kind: %v", err)
		}
	})
}

func TestNearest_HasMostInCommon(t *testing.T) {
	text := strings.Repeat("a large part of it ", 100)
	next := tree{"a": text, "b": "new", "c": "as it was"}.source().Manifest
	same := tree{"elsewhere": text, "c": "as it was"}.source().Manifest
	like := tree{"a": text + "with an end", "c": "other"}.source().Manifest
	none := tree{"x": "nothing of that"}.source().Manifest
	for name, c := range map[string]struct {
		bases []*release.Manifest
		want  int
	}{
		"no base":                           {nil, -1},
		"unknown ones":                      {[]*release.Manifest{nil, nil}, -1},
		"nothing in common":                 {[]*release.Manifest{none}, -1},
		"contents, wherever they are":       {[]*release.Manifest{none, like, nil, same}, 3},
		"a file of the same path":           {[]*release.Manifest{none, like}, 1},
		"the first of those that are alike": {[]*release.Manifest{same, same}, 0},
	} {
		if got := bundle.Nearest(next, c.bases); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
