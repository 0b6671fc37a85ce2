package remote_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/hotdeploy/hotdeploy/remote"
)

// memory is a source in memory.
type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func partOf(data []byte) remote.Part {
	return remote.Part{Name: digest(data), Size: int64(len(data)),
		Open: func() (remote.Source, error) { return memory{bytes.NewReader(data)}, nil }}
}

func randomBytes(n int, seed uint64) []byte {
	data := make([]byte, n)
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	rand.NewChaCha8(key).Read(data)
	return data
}

// check looks at what has arrived as the host would.
func check(t *testing.T, dir string, parts ...remote.Part) {
	t.Helper()
	for _, p := range parts {
		data, err := os.ReadFile(filepath.Join(dir, p.Name))
		if err != nil {
			t.Error(err)
		} else if digest(data) != p.Name {
			t.Errorf("%s: %d of %d bytes, and not the right ones", p.Name, len(data), p.Size)
		}
	}
}

func sizeOf(t *testing.T, dir string, p remote.Part) int64 {
	t.Helper()
	info, err := os.Stat(filepath.Join(dir, p.Name))
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

func TestUpload_ManySmallFilesAndALargeOneArrive(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, _ := newHost(t, start)
		s := dial(t, h, remote.Options{})
		dir := t.TempDir()
		parts := []remote.Part{partOf(nil), partOf(randomBytes(64<<20, 1))}
		for i := range 500 {
			parts = append(parts, partOf(randomBytes(1+i*37, uint64(i+2))))
		}
		var total, want int64
		for _, p := range parts {
			want += p.Size
		}
		if err := remote.Upload(deadline(t), s, dir, parts, func(n int64) { total += n }); err != nil {
			t.Fatal(err)
		}
		check(t, dir, parts...)
		if total != want {
			t.Errorf("progress says %d of %d bytes", total, want)
		}
	})
}

func TestUpload_CutInTheMiddleIsLostAndGoesOnWhereItWas(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, srv, r := relayed(t, start)
		dir := t.TempDir()
		part := partOf(randomBytes(32<<20, 1))
		s := dial(t, h, remote.Options{})
		r.after(16<<20, srv.drop)
		err := remote.Upload(deadline(t), s, dir, []remote.Part{part}, nil)
		if !errors.Is(err, remote.ErrLineLost) || errors.Is(err, remote.ErrNeverRan) {
			t.Fatalf("got %v", err)
		}
		<-s.Done()

		part.Offset = sizeOf(t, dir, part)
		if part.Offset < 8<<20 || part.Offset >= part.Size {
			t.Fatalf("%d bytes are there", part.Offset)
		}
		s = dial(t, h, remote.Options{})
		before := r.total()
		var progress int64
		if err := remote.Upload(deadline(t), s, dir, []remote.Part{part}, func(n int64) { progress += n }); err != nil {
			t.Fatal(err)
		}
		check(t, dir, part)
		if progress != part.Size-part.Offset {
			t.Errorf("progress says %d, missing were %d", progress, part.Size-part.Offset)
		}
		limit := part.Size - part.Offset + remote.Rewind + 1<<20
		if sent := r.total() - before; sent > limit {
			t.Errorf("sent %d bytes for %d that were missing", sent, part.Size-part.Offset)
		}
	})
}

// TestUpload_HolesBeforeTheEndAreFilled: what a server that works out of
// order may leave behind.
func TestUpload_HolesBeforeTheEndAreFilled(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, _ := newHost(t, start)
		s := dial(t, h, remote.Options{})
		dir := t.TempDir()
		data := randomBytes(8<<20, 1)
		part := partOf(data)
		there := bytes.Clone(data[:5<<20])
		clear(there[len(there)-remote.Rewind:])
		if err := os.WriteFile(filepath.Join(dir, part.Name), there, 0o600); err != nil {
			t.Fatal(err)
		}
		part.Offset = int64(len(there))
		if err := remote.Upload(deadline(t), s, dir, []remote.Part{part}, nil); err != nil {
			t.Fatal(err)
		}
		check(t, dir, part)
	})
}

func TestUpload_OffsetZeroStartsAnewWhateverIsThere(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, _ := newHost(t, start)
		s := dial(t, h, remote.Options{})
		dir := t.TempDir()
		for _, size := range []int{10, 100_000} {
			part := partOf(randomBytes(size, 1))
			for _, offset := range []int64{0, part.Size + 5} {
				part.Offset = offset
				if err := os.WriteFile(filepath.Join(dir, part.Name), make([]byte, size+5), 0o600); err != nil {
					t.Fatal(err)
				}
				if err := remote.Upload(deadline(t), s, dir, []remote.Part{part}, nil); err != nil {
					t.Fatal(err)
				}
				check(t, dir, part)
			}
		}
	})
}

func TestUpload_SmallFileThatIsThereIsNotSentAgain(t *testing.T) {
	h, _ := newHost(t, startInProcess)
	s := dial(t, h, remote.Options{})
	part := partOf([]byte("hello"))
	part.Offset = part.Size
	part.Open = func() (remote.Source, error) { return nil, errors.New("opened") }
	if err := remote.Upload(deadline(t), s, t.TempDir(), []remote.Part{part}, nil); err != nil {
		t.Error(err)
	}
}

func TestUpload_FileThatTheHostHasNoMoreIsAnError(t *testing.T) {
	h, _ := newHost(t, startInProcess)
	s := dial(t, h, remote.Options{})
	part := partOf(randomBytes(8<<20, 1))
	part.Offset = 5 << 20
	dir := t.TempDir()
	if err := remote.Upload(deadline(t), s, dir, []remote.Part{part}, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("gone: got %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, part.Name), []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := remote.Upload(deadline(t), s, dir, []remote.Part{part}, nil); err == nil {
		t.Error("shorter than the host said: no error")
	}
}

func TestUpload_LocalFileThatChangesIsNoticed(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, _ := newHost(t, start)
		s := dial(t, h, remote.Options{})
		data := randomBytes(3<<20, 1)
		changed := bytes.Clone(data)
		changed[2<<20]++
		for what, now := range map[string][]byte{"changed": changed, "truncated": data[:2<<20], "emptied": nil} {
			part := partOf(data)
			part.Open = partOf(now).Open
			err := remote.Upload(deadline(t), s, t.TempDir(), []remote.Part{part}, nil)
			if !errors.Is(err, remote.ErrSourceChanged) {
				t.Errorf("%s: got %v", what, err)
			}
		}
	})
}

func TestUpload_LocalErrorIsTheErrorAndSourcesAreClosed(t *testing.T) {
	h, _ := newHost(t, startInProcess)
	s := dial(t, h, remote.Options{})
	boom := errors.New("boom")
	var open atomic.Int32
	parts := []remote.Part{partOf(randomBytes(4<<20, 1)), partOf(randomBytes(4<<20, 2)), partOf(randomBytes(4<<20, 3))}
	for i := range parts {
		inner := parts[i].Open
		parts[i].Open = func() (remote.Source, error) {
			src, _ := inner()
			open.Add(1)
			return closer{src, func() { open.Add(-1) }}, nil
		}
	}
	failing := partOf([]byte("x"))
	failing.Open = func() (remote.Source, error) { return nil, boom }
	err := remote.Upload(deadline(t), s, t.TempDir(), append(parts, failing), nil)
	if !errors.Is(err, boom) || open.Load() != 0 {
		t.Errorf("got %v, %d sources open", err, open.Load())
	}
}

type closer struct {
	io.ReaderAt
	close func()
}

func (c closer) Close() error { c.close(); return nil }

func TestUpload_CancelReturnsAndKeepsWhatIsThere(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, _ := newHost(t, start)
		s := dial(t, h, remote.Options{})
		ctx, cancel := context.WithCancel(deadline(t))
		dir := t.TempDir()
		part := partOf(randomBytes(32<<20, 1))
		returned := false
		err := remote.Upload(ctx, s, dir, []remote.Part{part}, func(int64) {
			if returned {
				t.Error("progress after the return")
			}
			cancel()
		})
		returned = true
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
		if part.Offset = sizeOf(t, dir, part); part.Offset == 0 {
			t.Error("nothing is there")
		}
		if err := s.Run(deadline(t), []string{"true"}, nil, nil, nil); err != nil {
			t.Errorf("the session should live on: %v", err)
		}
	})
}

func TestUpload_DeadLineIsNoticed(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		t.Parallel() // it waits for seconds
		h, _, r := relayed(t, start)
		s := dial(t, h, quick)
		r.after(4<<20, r.die)
		err := remote.Upload(deadline(t), s, t.TempDir(), []remote.Part{partOf(randomBytes(32<<20, 1))}, nil)
		if !errors.Is(err, remote.ErrLineLost) {
			t.Errorf("got %v", err)
		}
	})
}

func TestUpload_DirectoryThatIsNotThereIsSaid(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, _ := newHost(t, start)
		s := dial(t, h, remote.Options{})
		err := remote.Upload(deadline(t), s, "/nonexistent/incoming", []remote.Part{partOf([]byte("x"))}, nil)
		if !errors.Is(err, os.ErrNotExist) || errors.Is(err, remote.ErrLineLost) {
			t.Errorf("got %v", err)
		}
	})
}

func TestUpload_FullDiskIsNotALostLine(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, _ := newHost(t, start)
		s := dial(t, h, remote.Options{})
		dir := t.TempDir()
		part := partOf(randomBytes(4<<20, 1))
		if err := os.Symlink("/dev/full", filepath.Join(dir, part.Name)); err != nil {
			t.Fatal(err)
		}
		err := remote.Upload(deadline(t), s, dir, []remote.Part{part}, nil)
		if err == nil || errors.Is(err, remote.ErrLineLost) || !strings.Contains(err.Error(), "room on the host's disk") {
			t.Errorf("got %v", err)
		}
	})
}

func TestUpload_NamesAreDigestsAndNothingElse(t *testing.T) {
	h, _ := newHost(t, startInProcess)
	s := dial(t, h, remote.Options{})
	good := partOf([]byte("x"))
	bad := map[string][]remote.Part{"twice": {good, good}}
	for _, name := range []string{"", "..", "../" + good.Name[3:], good.Name[:63] + "A", good.Name + "0"} {
		p := good
		p.Name = name
		bad[name] = []remote.Part{p}
	}
	negative := good
	negative.Offset = -1
	bad["negative"] = []remote.Part{negative}
	for what, parts := range bad {
		if err := remote.Upload(deadline(t), s, t.TempDir(), parts, nil); !errors.Is(err, remote.ErrNeverRan) {
			t.Errorf("%q: got %v", what, err)
		}
	}
}
