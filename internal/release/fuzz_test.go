package release

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzDecode looks for panics, for manifests that are taken but break the package's promise, and for two forms of one manifest.
func FuzzDecode(f *testing.F) {
	for _, m := range []*Manifest{
		manifest(), manifest(file("a"), link("b", "a"), link("c/d", "../b")), manifest(chain(5)...), manifest(link("d", "data/x")),
		manifest(file("\xff/\n"), link("a", "\xff"), link("\xfe", "a/\n")),
	} {
		b, err := Encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, m := range []*Manifest{manifest(file("../x")), manifest(link("l", "../x")), manifest(link("l", "l")), manifest(file("a"), file("a/b"))} {
		b, err := json.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"format":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			// Nearly everything ends here, for its form alone: look at what it says all the same.
			m = new(Manifest)
			if json.Unmarshal(b, m) != nil || m.Validate() != nil {
				return
			}
			if b, err = Encode(m); err != nil {
				t.Fatalf("valid, but %v", err)
			}
			if m, err = Decode(b); err != nil {
				t.Fatalf("%q: %v", b, err)
			}
		}
		again, err := Encode(m)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%q became %q, %v", b, again, err)
		}
		if len(m.Files) < 30 {
			staysInside(t, m)
		}
	})
}

// staysInside writes the tree that m describes, and looks at it with the kernel's eyes.
func staysInside(t *testing.T, m *Manifest) {
	dir := filepath.Join(t.TempDir(), "files")
	makeTree(t, dir, m.Files)
	for _, s := range m.Spec.Run.Shared {
		if err := os.MkdirAll(filepath.Join(dir, s), 0o755); err != nil {
			t.Fatalf("shared path %q: %v", s, err)
		}
	}
	for _, f := range m.Files {
		real, err := filepath.EvalSymlinks(filepath.Join(dir, f.Path))
		if err == nil && real != dir && !strings.HasPrefix(real, dir+"/") {
			t.Fatalf("%q -> %q leads to %q", f.Path, f.Link, real)
		}
	}
}
