package store

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/hotdeploy/hotdeploy/internal/bundle"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// anyName is a name that a program might trip over.
func anyName(r *rand.Rand) string {
	hard := []string{" ", "with spaces ", "line\nend", "\xff\xfe", "caf\xe9", "ümlaut", "\ufffd", "-rf", "\x1b[2J", `back\slash`, `"quoted"`, "$(id)", "...", "tab\t"}
	if r.IntN(3) == 0 {
		return fmt.Sprint("file", r.IntN(40))
	}
	return hard[r.IntN(len(hard))] + fmt.Sprint(r.IntN(4))
}

// anyContent is what deltas are hard to make of.
func anyContent(r *rand.Rand) []byte {
	n := r.IntN(20_000)
	b := make([]byte, n) // sparse
	switch r.IntN(5) {
	case 0:
		return nil
	case 1:
		return bytes.Repeat([]byte("over and over "), n/14)
	case 2:
		b[n/2] = 1
	case 3:
		for i := range b {
			b[i] = byte(r.Uint32())
		}
	default:
		for i := range b {
			b[i] = "abcdef \n"[r.IntN(8)]
		}
	}
	return b
}

// anyTree writes a project that can be packed, changed from another if there is one. Every symlink leads to a file.
func anyTree(t *testing.T, r *rand.Rand, from map[string][]byte) (dir string, files map[string][]byte) {
	t.Helper()
	files = map[string][]byte{"run": []byte(runScript)}
	for name, text := range from {
		switch r.IntN(8) {
		case 0: // gone
		case 1:
			files["moved/"+name] = text
		case 2:
			at := r.IntN(len(text) + 1)
			files[name] = append(append(bytes.Clone(text[:at]), "shifts what follows"...), text[at:]...)
		default:
			files[name] = text
		}
	}
	for range r.IntN(20) {
		name := "d" + anyName(r) + "/" + anyName(r)
		if r.IntN(2) == 0 {
			name = "f" + anyName(r)
		}
		files[name] = anyContent(r)
	}
	files["run"] = []byte(runScript)
	dir = t.TempDir()
	for name, text := range files {
		at := filepath.Join(dir, name)
		mode := os.FileMode(0o644)
		if name == "run" || r.IntN(4) == 0 {
			mode = 0o755
		}
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, text, mode); err != nil {
			t.Fatal(err)
		}
		if r.IntN(4) == 0 {
			link := filepath.Join(dir, fmt.Sprintf("l%s%d", anyName(r), r.Uint32()))
			if err := os.Symlink(name, link); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir, files
}

func packed(t *testing.T, dir, version string) *release.Packed {
	t.Helper()
	o := release.PackOptions{Dir: dir, Service: "chat", Version: version, Files: []string{"**"}}
	o.Spec.Run.Command = []string{"./run"}
	o.Spec.SetDefaults()
	p, err := release.Pack(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// deliver brings a packed release into a store as a bundle that is based on another, if there is one.
func deliver(t *testing.T, s *Store, p, base *release.Packed) {
	t.Helper()
	facts := here
	facts.Bundle = true
	plan, err := s.Plan(t.Context(), p.Bytes, facts)
	if err != nil {
		t.Fatal(err)
	}
	source := func(p *release.Packed) bundle.Source {
		return bundle.Source{Manifest: p.Manifest, Open: func(f *release.File) (bundle.File, error) { return p.Open(f.SHA256) }}
	}
	r := bundle.Choose(p.Manifest, plan.Lacks, nil, "")
	var from bundle.Source
	if base != nil {
		from = source(base)
		r = bundle.Choose(p.Manifest, plan.Lacks, base.Manifest, base.Digest)
	}
	if len(plan.Lacks) > 0 {
		var out bytes.Buffer
		if err := bundle.Write(t.Context(), &out, r, from, source(p)); err != nil {
			t.Fatal(err)
		}
		if err := s.Receive(t.Context(), p.Digest, r.ID(p.Digest), 0, &out); err != nil {
			t.Fatal(err)
		}
		if err := s.Rebuild(t.Context(), p.Digest, r.ID(p.Digest)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Complete(t.Context(), p.Digest); err != nil {
		t.Fatal(err)
	}
}

// shape is what a tree looks like to those who read it: contents, links, and who may execute.
func shape(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(at string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, _ := filepath.Rel(dir, at)
		if target, err := os.Readlink(at); err == nil {
			out[name] = "-> " + target
			return nil
		}
		b, err := os.ReadFile(at)
		fi, infoErr := e.Info()
		if err == nil && infoErr == nil {
			out[name] = fmt.Sprint(fi.Mode()&0o111 != 0, " ", string(b))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestBundle_FromAnyTreeToAnyTree_TheHostHasTheSame(t *testing.T) {
	odd := 0
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 7))
		s := open(t, t.TempDir())
		var files map[string][]byte
		var base *release.Packed
		for n := range 3 {
			var dir string
			dir, files = anyTree(t, r, files)
			p := packed(t, dir, fmt.Sprint(n))
			deliver(t, s, p, base)
			want, got := shape(t, dir), shape(t, filepath.Join(s.Dir(), "releases", fmt.Sprint(n), release.FilesDir))
			if !maps.Equal(want, got) {
				t.Fatalf("seed %d, release %d:\n%q\nis not\n%q", seed, n, got, want)
			}
			whole(t, s, fmt.Sprint(n))
			for name := range want {
				if strings.Contains(name, "\n") || !utf8.ValidString(name) {
					odd++
				}
			}
			base = p
		}
	}
	if odd < 50 {
		t.Errorf("only %d names were odd", odd)
	}
}
