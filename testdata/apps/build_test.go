package apps

import (
	"debug/elf"
	"os"
	"path/filepath"
	"testing"
)

func TestBuild_ArchitectureAndMarkAreInTheBinary(t *testing.T) {
	plain, err := os.ReadFile(Build(t, "wsecho", "", ""))
	if err != nil {
		t.Fatal(err)
	}
	marked, err := os.ReadFile(BuildMarked(t, "wsecho", "", "", "two"))
	if err != nil {
		t.Fatal(err)
	}
	if string(plain) == string(marked) {
		t.Error("a mark changed no byte of the binary")
	}
	file, err := elf.Open(Build(t, "wsecho", "linux", "arm64"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if file.Machine != elf.EM_AARCH64 {
		t.Errorf("machine of the arm64 build: got %s", file.Machine)
	}
}

// What one test does to its file must not reach another's: the damaged-file
// stories write into theirs.
func TestBuild_EachTestHasItsOwnFile(t *testing.T) {
	first := Build(t, "wsecho", "", "")
	second := Build(t, "wsecho", "", "")
	if filepath.Dir(first) == filepath.Dir(second) {
		t.Fatalf("both are %s", first)
	}
	if err := os.WriteFile(first, []byte("damaged"), 0o755); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(second)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() < 1<<20 {
		t.Errorf("damaging one test's file left %d bytes of another's", info.Size())
	}
}
