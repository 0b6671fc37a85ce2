package delta_test

import (
	"bytes"
	"testing"

	"github.com/hotdeploy/hotdeploy/internal/delta"
)

func FuzzIdentity(f *testing.F) {
	f.Add([]byte{}, []byte("new"))
	f.Add(words(1, 500), append(words(1, 400), words(2, 100)...))
	f.Add(table(300, 1<<19, 0), table(300, 1<<19, 0x120))
	f.Fuzz(func(t *testing.T, old, new []byte) {
		d := makeDelta(t, old, new)
		var got bytes.Buffer
		if err := delta.Apply(t.Context(), &got, section(old), section(d), int64(len(new))); err != nil || !bytes.Equal(got.Bytes(), new) {
			t.Fatalf("from %d to %d bytes: %v", len(old), len(new), err)
		}
	})
}

func FuzzApply(f *testing.F) {
	old := table(2_000, 1<<19, 0)
	for _, new := range [][]byte{nil, words(1, 2_000), table(2_000, 1<<19, 0x120), append(words(1, 50), old[100:]...)} {
		f.Add(makeDelta(f, old, new))
		f.Add(makeDelta(f, nil, new))
	}
	const limit = 64 << 10
	f.Fuzz(func(t *testing.T, d []byte) {
		for _, was := range [][]byte{old, nil} {
			var out bytes.Buffer
			if err := delta.Apply(t.Context(), &out, section(was), section(d), limit); out.Len() > limit {
				t.Fatalf("%d bytes came out of it: %v", out.Len(), err)
			}
		}
	})
}
