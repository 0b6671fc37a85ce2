package delta_test

import (
	"bytes"
	"runtime"
	"testing"

	"github.com/hotdeploy/hotdeploy/internal/delta"
)

func TestPlain_TheSameOnAnyNumberOfProcessors(t *testing.T) {
	new := append(append(words(1, 9<<20), random(2, 6<<20)...), make([]byte, 6<<20)...)
	var first []byte
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, n := range []int{1, 2, 7} {
		runtime.GOMAXPROCS(n)
		d := makeDelta(t, nil, new)
		if first == nil {
			first = d
		}
		if !bytes.Equal(d, first) {
			t.Fatalf("with %d processors it is another delta", n)
		}
	}
	var got bytes.Buffer
	if err := delta.Apply(t.Context(), &got, section(nil), section(first), int64(len(new))); err != nil || !bytes.Equal(got.Bytes(), new) {
		t.Fatalf("what was applied is another file: %v", err)
	}
	if most := 7 << 20; len(first) > 3<<20+most {
		t.Errorf("%d bytes", len(first))
	}
}

func BenchmarkPlain(b *testing.B) {
	for name, new := range map[string][]byte{"words": words(1, 32<<20), "random": random(2, 32<<20)} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(new)))
			for b.Loop() {
				makeDelta(b, nil, new)
			}
		})
	}
}
