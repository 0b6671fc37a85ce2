package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// partsThere counts what an upload has under the names of contents.
func partsThere(t *testing.T, s *Store, digest string) (n int) {
	t.Helper()
	list, err := os.ReadDir(filepath.Join(s.Dir(), "incoming", digest, "parts"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if release.CheckDigest(e.Name()) == nil {
			n++
		}
	}
	return n
}

// A release is made of a bundle while it arrives: when its last byte is here, so is everything that it holds.
func TestReceive_RebuildsWhileTheBundleArrives(t *testing.T) {
	s := open(t, t.TempDir())
	digest, id, b := bundled(t, s, first, nil)
	half, rest := make(chan struct{}), make(chan struct{})
	slow := io.MultiReader(bytes.NewReader(b[:len(b)-1]), readerFunc(func([]byte) (int, error) {
		close(half)
		<-rest
		return 0, io.EOF
	}), bytes.NewReader(b[len(b)-1:]))
	ended := make(chan error, 1)
	go func() { ended <- s.Receive(t.Context(), digest, id, 0, slow) }()
	<-half
	parts := filepath.Join(s.Dir(), "incoming", digest, "parts")
	for deadline := time.Now().Add(time.Minute); ; runtime.Gosched() { // contents are made although the last byte is not here
		if list, err := os.ReadDir(parts); err != nil || len(list) > 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Error("nothing is made of what has arrived")
			break
		}
	}
	if n := partsThere(t, s, digest); n != 0 {
		t.Errorf("%d parts have their names already", n)
	}
	close(rest)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if n := partsThere(t, s, digest); n == 0 {
		t.Error("nothing was rebuilt")
	}
	if exists(filepath.Join(s.Dir(), "incoming", digest, bundlePrefix+id)) {
		t.Error("the bundle is still there")
	}
	if _, err := s.Complete(t.Context(), digest); err != nil {
		t.Fatal(err)
	}
	whole(t, s, "1")
}

// What to send depends on what is there. If a cut bundle left some of its contents behind, another one would be due, from its first byte.
func TestReceive_Cut_LeavesTheBundleAndNoPart(t *testing.T) {
	s := open(t, t.TempDir())
	digest, id, b := bundled(t, s, first, nil)
	lost := errors.New("the line was lost")
	if err := s.Receive(t.Context(), digest, id, 0, io.MultiReader(bytes.NewReader(b[:len(b)-1]), iotest.ErrReader(lost))); !errors.Is(err, lost) {
		t.Fatalf("got %v", err)
	}
	if n := partsThere(t, s, digest); n != 0 {
		t.Errorf("%d parts are left", n)
	}
	again, sameID, _ := bundled(t, s, first, nil)
	if again != digest || sameID != id {
		t.Error("another bundle is due now")
	}
	if err := s.Receive(t.Context(), digest, id, int64(len(b)-1), bytes.NewReader(b[len(b)-1:])); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Complete(t.Context(), digest); err != nil {
		t.Fatal(err)
	}
	whole(t, s, "1")
}

func TestRebuild_DoesNotWaitForABundleThatIsStillArriving(t *testing.T) {
	s := open(t, t.TempDir())
	slowDigest, slowID, slow := bundled(t, s, second, nil)
	begun, stop := make(chan struct{}), make(chan struct{})
	stalled := io.MultiReader(bytes.NewReader(slow[:40]), readerFunc(func([]byte) (int, error) {
		close(begun)
		<-stop
		return 0, io.EOF
	}), bytes.NewReader(slow[40:]))
	ended := make(chan error, 1)
	go func() { ended <- s.Receive(t.Context(), slowDigest, slowID, 0, stalled) }()
	<-begun
	digest, id, b := bundled(t, s, first, nil)
	if err := s.Receive(t.Context(), digest, id, 0, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	if err := s.Rebuild(t.Context(), digest, id); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Complete(t.Context(), digest); err != nil {
		t.Fatal(err)
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if err := s.Rebuild(t.Context(), slowDigest, slowID); err != nil {
		t.Fatalf("the one that had to give way: %v", err)
	}
	if _, err := s.Complete(t.Context(), slowDigest); err != nil {
		t.Fatal(err)
	}
	whole(t, s, "1")
	whole(t, s, "2")
}

// When the base is not what it was said to be, that is noticed when the first content is wrong, not when all has arrived.
func TestReceive_BaseIsDamaged_RefusedBeforeAllHasArrived(t *testing.T) {
	s := open(t, t.TempDir())
	old, next := app{version: "1", files: map[string]string{}}, app{version: "2", files: map[string]string{}}
	for i := range 3 {
		text := string(noise(byte(i), 1<<20))
		old.files[fmt.Sprint("file", i)], next.files[fmt.Sprint("file", i)] = text, text[:1000]+"changed"+text[1000:]
	}
	next.files["last"] = string(noise(9, 8<<20))
	push(t, s, old)
	digest, id, b := bundled(t, s, next, &old)
	name := filepath.Join(s.Dir(), "releases", "1", "files", "file0")
	if err := os.Chmod(name, 0o644); err != nil {
		t.Fatal(err)
	}
	write(t, name, strings.Replace(old.files["file0"], old.files["file0"][500_000:500_010], "0123456789", 1))
	sent := 0
	err := s.Receive(t.Context(), digest, id, 0, readerFunc(func(p []byte) (int, error) {
		if sent < len(b)-1 {
			n := copy(p, b[sent:min(len(b)-1, sent+len(p))])
			sent += n
			return n, nil
		}
		for deadline := time.Now().Add(time.Minute); s.rebuildsEarly() && time.Now().Before(deadline); {
			runtime.Gosched()
		}
		runtime.Gosched()
		p[0] = 0 // and so on until somebody has had enough
		return 1, nil
	}))
	if !errors.Is(err, api.ErrBundle) {
		t.Fatalf("got %v", err)
	}
	if !s.isRotten("releases/1/files/file0") {
		t.Error("the damaged file is believed as before")
	}
	if n := partsThere(t, s, digest); n != 0 {
		t.Errorf("%d parts are left", n)
	}
}

func (s *Store) rebuildsEarly() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.early != nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func init() {
	// The old file, the new one and a small delta have room, though another new one in full would not.
	children["delta fits"] = func(args []string) error {
		s, err := smallDisk(args)
		if err != nil {
			return err
		}
		noise := string(noise(1, 6<<20))
		old, new := app{version: "1", files: map[string]string{"big": noise}}, app{version: "2", files: map[string]string{"big": "more" + noise}}
		for i, a := range []app{old, new} {
			var base *app
			if i == 1 {
				base = &old
			}
			digest, id, b := bundled(childT{}, s, a, base)
			if err := s.Receive(childT{}.Context(), digest, id, 0, bytes.NewReader(b)); err != nil {
				return err
			}
			if err := s.Rebuild(childT{}.Context(), digest, id); err != nil {
				return err
			}
			if _, err := s.Complete(childT{}.Context(), digest); err != nil {
				return err
			}
		}
		whole(childT{}, s, "2")
		return s.Close()
	}
	// One that does not compress has none twice, which nobody knew before.
	children["bundle too large"] = func(args []string) error {
		s, err := smallDisk(args)
		if err != nil {
			return err
		}
		digest, id, b := bundled(childT{}, s, app{version: "1", files: map[string]string{"big": string(noise(1, 10<<20))}}, nil)
		if err = s.Receive(childT{}.Context(), digest, id, 0, bytes.NewReader(b)); err == nil {
			err = s.Rebuild(childT{}.Context(), digest, id)
		}
		if !errors.Is(err, api.ErrDiskSpace) || !strings.Contains(err.Error(), "no room") {
			return errors.Join(errors.New("want no room"), err)
		}
		return s.Close()
	}
}

func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	x := uint64(seed) + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x >> 32)
	}
	return b
}

func TestPlan_ADeltaNeedsRoomForWhatIsNewOnce(t *testing.T) { onSmallDisk(t, "delta fits", "size=17m") }

func TestReceive_ABundleThatDoesNotFit_IsToldAsThat(t *testing.T) {
	onSmallDisk(t, "bundle too large", "size=16m")
}
