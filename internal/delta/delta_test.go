package delta_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/hotdeploy/hotdeploy/internal/delta"
)

func section(b []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))
}

func makeDelta(t testing.TB, old, new []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := delta.Make(t.Context(), &out, section(old), section(new)); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// checkIdentity makes new by way of a delta and returns the delta's size.
func checkIdentity(t testing.TB, old, new []byte) int {
	t.Helper()
	d := makeDelta(t, old, new)
	var got bytes.Buffer
	if err := delta.Apply(t.Context(), &got, section(old), section(d), int64(len(new))); err != nil {
		t.Fatalf("apply a delta of %d bytes from %d to %d: %v", len(d), len(old), len(new), err)
	}
	if !bytes.Equal(got.Bytes(), new) {
		t.Fatalf("from %d to %d bytes: what was applied is another file", len(old), len(new))
	}
	if again := makeDelta(t, old, new); !bytes.Equal(d, again) {
		t.Fatal("the same two files give two deltas")
	}
	return len(d)
}

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	r.Read(b)
	return b
}

// words is text that compresses.
func words(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	var b bytes.Buffer
	for b.Len() < n {
		fmt.Fprintf(&b, "%s%d ", strings.Repeat("ab"[r.IntN(2):][:1], r.IntN(9)), r.IntN(5000))
	}
	return b.Bytes()[:n]
}

// table is numbers as a program has them: places of things, most of which move when something is added.
func table(n int, from, by uint32) []byte {
	b := make([]byte, 0, 4*n)
	r := rand.New(rand.NewPCG(7, 7))
	for range n {
		v := r.Uint32N(1 << 20)
		if v >= from {
			v += by
		}
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

func TestIdentity(t *testing.T) {
	text, noise := words(1, 300_000), random(1, 300_000)
	elf := append([]byte("\x7fELF\x02\x01\x01"), noise...) // begins as one, and is none
	edited := slices.Clone(noise)
	for i := 1000; i < len(edited); i += 997 {
		edited[i]++
	}
	for _, c := range []struct {
		name     string
		old, new []byte
		most     int // bytes of the delta
	}{
		{"both empty", nil, nil, 20},
		{"old empty", nil, text, 120_000},
		{"new empty", text, nil, 20},
		{"one byte", []byte{1}, []byte{2}, 40},
		{"the same", noise, noise, 40},
		{"nothing in common", random(2, 300_000), noise, 300_100},
		{"grown at its start", noise, append(random(3, 1000), noise...), 1_100},
		{"shrunk at its start", noise, noise[777:], 60},
		{"cut short", noise, noise[:1000], 60},
		{"parts swapped", noise, slices.Concat(noise[150_000:], noise[:150_000]), 80},
		{"many small edits", noise, edited, 1_200},
		{"zeros", make([]byte, 1<<20), make([]byte, 2<<20), 200},
		{"sparse", make([]byte, 1<<20), slices.Concat(make([]byte, 1<<19), []byte("x"), make([]byte, 1<<19)), 200},
		{"repeated", bytes.Repeat([]byte("abcdefg"), 50_000), bytes.Repeat([]byte("abcdefg"), 60_001), 200},
		{"repeated otherwise", bytes.Repeat([]byte("abcdefg"), 50_000), bytes.Repeat([]byte("gfedcbaaa"), 50_000), 400},
		{"moved numbers", table(100_000, 1<<19, 0x120), table(100_000, 1<<19, 0x240), 25_000},
		{"an entry put in", table(100_000, 1<<20, 0), slices.Concat(table(40_000, 1<<20, 0), []byte("entry"), table(100_000, 1<<20, 0)[160_000:]), 200},
		{"no real ELF", elf, append(elf, elf...), 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := checkIdentity(t, c.old, c.new)
			t.Logf("%d to %d: %d", len(c.old), len(c.new), n)
			if n > c.most {
				t.Errorf("from %d to %d bytes takes %d, more than %d", len(c.old), len(c.new), n, c.most)
			}
		})
	}
}

// Any edits of any content.
func TestIdentityOfEdits(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 5))
		old := [][]byte{random(seed, r.IntN(40_000)), words(seed, r.IntN(200_000)), table(r.IntN(20_000), 1<<18, 0), make([]byte, r.IntN(9_000))}[r.IntN(4)]
		checkIdentity(t, old, edit(r, old))
	}
}

// edit copies, drops, repeats and changes pieces.
func edit(r *rand.Rand, old []byte) (new []byte) {
	for range 1 + r.IntN(30) {
		at := r.IntN(len(old) + 1)
		piece := slices.Clone(old[at:min(len(old), at+r.IntN(len(old)/4+2))])
		for range r.IntN(3) * len(piece) / 50 {
			piece[r.IntN(len(piece))] += byte(r.IntN(3))
		}
		if r.IntN(4) == 0 {
			piece = random(r.Uint64(), r.IntN(300))
		}
		new = append(new, piece...)
	}
	return new
}

// What many files make when they lie one behind the other, some moved, some new: runs, noise and few letters side by side.
func TestIdentityOfMixtures(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 7))
		piece := func() []byte {
			b := make([]byte, r.IntN(1<<r.IntN(15)))
			switch r.IntN(4) {
			case 0:
				return bytes.Repeat([]byte("over and over "), len(b)/14)
			case 1:
				return random(seed, len(b))
			case 2:
				for i := range b {
					b[i] = "abcdef \n"[r.IntN(8)]
				}
			}
			return b
		}
		pieces := make([][]byte, 12)
		for i := range pieces {
			pieces[i] = piece()
		}
		old := bytes.Join(pieces[:r.IntN(len(pieces))], nil)
		for i, b := range pieces {
			at := r.IntN(len(b) + 1)
			pieces[i] = slices.Concat(b[:at], []byte("shifts what follows"), b[at:])
		}
		r.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
		checkIdentity(t, old, bytes.Join(pieces, nil))
	}
}

func TestIdentityOfManySegments(t *testing.T) {
	delta.SetSizes(t, 100_000, 150_000)
	old := slices.Concat(random(1, 400_000), words(1, 400_000), make([]byte, 200_000), table(50_000, 1<<19, 0))
	for name, new := range map[string][]byte{
		"grown at its start": slices.Concat(random(2, 90_000), old),
		"cut at its start":   old[123_456:],
		"another":            words(2, 450_000),
		"nothing but zeros":  make([]byte, 1_000_000),
	} {
		t.Run(name, func(t *testing.T) {
			n := checkIdentity(t, old, new)
			t.Logf("%d bytes for %d", n, len(new))
			if name != "another" && n > 95_000 {
				t.Errorf("the delta takes %d bytes", n)
			}
		})
	}
	if n := checkIdentity(t, old[:10], old); n > len(old) {
		t.Errorf("%d bytes for %d", n, len(old))
	}
}

func TestNeverMuchWorseThanZstd(t *testing.T) {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderCRC(false))
	if err != nil {
		t.Fatal(err)
	}
	text := words(3, 2_000_000)
	for name, old := range map[string][]byte{"empty": nil, "noise": random(1, 1<<20), "the same kind": words(4, 2_000_000), "zeros": make([]byte, 1<<20)} {
		plain := len(z.EncodeAll(text, nil))
		if got := len(makeDelta(t, old, text)); float64(got) > float64(plain)*1.01 {
			t.Errorf("old file %s: %d bytes, zstd alone needs %d", name, got, plain)
		}
	}
}

func TestApplyRefuses(t *testing.T) {
	old, new := random(1, 5_000), slices.Concat(random(1, 5_000)[2_000:], words(1, 3_000))
	good := makeDelta(t, old, new)
	apply := func(d, old []byte, limit int) error {
		return delta.Apply(t.Context(), io.Discard, section(old), section(d), int64(limit))
	}
	if err := apply(good, old, len(new)-1); !errors.Is(err, delta.ErrTooLarge) {
		t.Errorf("larger than allowed: %v", err)
	}
	for name, d := range map[string][]byte{
		"empty":          nil,
		"not a delta":    []byte("nonsense"),
		"cut off":        good[:len(good)-1],
		"only a header":  good[:8],
		"more behind it": append(slices.Clone(good), 0),
	} {
		if err := apply(d, old, len(new)); !errors.Is(err, delta.ErrMalformed) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := apply(good, old[1:], len(new)); !errors.Is(err, delta.ErrMalformed) {
		t.Errorf("for another old file: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := delta.Apply(ctx, io.Discard, section(old), section(good), 1<<20); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// Whatever is changed in a delta, Apply ends, within the limit.
func TestApplyOfDamaged(t *testing.T) {
	old := table(3_000, 1<<19, 0)
	new := slices.Concat(table(3_000, 1<<19, 0x333), words(9, 2_000))
	good := makeDelta(t, old, new)
	for i := 0; i < len(good); i += 1 + i/40 {
		for _, bit := range []byte{1, 0x80, 0xff} {
			bad := slices.Clone(good)
			bad[i] ^= bit
			var out bytes.Buffer
			err := delta.Apply(t.Context(), &out, section(old), section(bad), int64(len(new)))
			if out.Len() > len(new) || err == nil && out.Len() > len(new) {
				t.Fatalf("byte %d ^ %x: %d bytes came out of it: %v", i, bit, out.Len(), err)
			}
		}
	}
}

func TestMakeOfAFileThatIsCutShort(t *testing.T) {
	r := io.NewSectionReader(bytes.NewReader([]byte("short")), 0, 1000)
	if err := delta.Make(t.Context(), io.Discard, section(nil), r); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("new: %v", err)
	}
	if err := delta.Make(t.Context(), io.Discard, r, section([]byte("new"))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("old: %v", err)
	}
}
