package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

// random is a release of one file that does not compress.
func random(version string, size int) app {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte([]byte(strings.Repeat(version, 32)))).Read(b)
	return app{version: version, files: map[string]string{"big": string(b)}}
}

// arrived are the bundles of a that are there.
func arrived(t testing.TB, s *Store, a app) map[string]int64 {
	t.Helper()
	_, raw, _ := a.manifest(t)
	facts := here
	facts.Bundle = true
	p, err := s.Plan(t.Context(), raw, facts)
	if err != nil {
		t.Fatal(err)
	}
	return p.Arrived
}

func TestReceive_TwoWithDifferentBasesSendTheSameRelease_BothGoOn(t *testing.T) {
	s := open(t, t.TempDir())
	push(t, s, first)
	digest, oneID, one := bundled(t, s, second, &first)
	_, otherID, other := bundled(t, s, second, nil)
	begun, rest := make(chan struct{}), make(chan struct{})
	stalled := io.MultiReader(bytes.NewReader(one[:40]), readerFunc(func([]byte) (int, error) {
		close(begun)
		<-rest
		return 0, io.EOF
	}), iotest.TimeoutReader(iotest.OneByteReader(bytes.NewReader(one[40:])))) // then it is cut
	ended := make(chan error, 1)
	go func() { ended <- s.Receive(t.Context(), digest, oneID, 0, stalled) }()
	<-begun
	err := s.Receive(t.Context(), digest, otherID, 0, io.MultiReader(bytes.NewReader(other[:50]), iotest.ErrReader(io.ErrUnexpectedEOF)))
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	close(rest)
	if err := <-ended; !errors.Is(err, iotest.ErrTimeout) {
		t.Fatal(err)
	}
	if got, want := arrived(t, s, second), map[string]int64{oneID: 41, otherID: 50}; !maps.Equal(got, want) {
		t.Errorf("of the bundles %v are there, want %v", got, want)
	}
}

func TestReceive_OfBundlesThatNobodySendsTheNewestStay(t *testing.T) {
	s := open(t, t.TempDir())
	digest, _, _ := bundled(t, s, first, nil)
	if err := s.rebuilding.take(t.Context()); err != nil { // or they are refused for what is in them
		t.Fatal(err)
	}
	defer s.rebuilding.give()
	var ids []string
	for i := range 6 {
		id := strings.Repeat(fmt.Sprint(5-i), 64) // the names are in another order
		ids = append(ids, id)
		if err := s.Receive(t.Context(), digest, id, 0, strings.NewReader("a beginning")); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(time.Duration(i-10) * time.Minute)
		if err := os.Chtimes(filepath.Join(s.Dir(), "incoming", digest, bundlePrefix+id), at, at); err != nil {
			t.Fatal(err)
		}
	}
	got, want := slices.Sorted(maps.Keys(arrived(t, s, first))), slices.Sorted(slices.Values(ids[2:])) // the last and 3 others
	if !slices.Equal(got, want) {
		t.Errorf("%v stay, want %v", got, want)
	}
}

func TestRoomForThePartsOnly_TheBundleGoesAndTheFilesFit(t *testing.T) {
	onSmallDisk(t, "not twice", "size=10m")
}

func TestNoRoomBesideABundleThatNobodySends_ItGivesWay(t *testing.T) {
	onSmallDisk(t, "left bundle", "size=10m")
}

func init() {
	alone := here
	alone.SameUser = true
	children["not twice"] = func(args []string) error {
		s, err := smallDisk(args)
		if err != nil {
			return err
		}
		a := random("1", 6<<20)
		digest, id, b := bundled(childT{}, s, a, nil)
		if err = s.Receive(childT{}.Context(), digest, id, 0, bytes.NewReader(b)); err == nil {
			err = s.Rebuild(childT{}.Context(), digest, id)
		}
		if !errors.Is(err, api.ErrDiskSpace) {
			return fmt.Errorf("receive: %w", err)
		}
		if err := nothingLeft(s); err != nil {
			return fmt.Errorf("received: %w", err)
		}
		// The same where nothing is rebuilt before all has arrived.
		if err := s.rebuilding.take(childT{}.Context()); err != nil {
			return err
		}
		if err := s.Receive(childT{}.Context(), digest, id, 0, bytes.NewReader(b)); err != nil {
			return fmt.Errorf("receive alone: %w", err)
		}
		s.rebuilding.give()
		if err := s.Rebuild(childT{}.Context(), digest, id); !errors.Is(err, api.ErrDiskSpace) {
			return fmt.Errorf("rebuild: %w", err)
		}
		if err := nothingLeft(s); err != nil {
			return fmt.Errorf("rebuilt: %w", err)
		}
		_, raw, _ := a.manifest(childT{})
		if _, err := s.Plan(childT{}.Context(), raw, alone); err != nil {
			return fmt.Errorf("the files as they are: %w", err)
		}
		write(childT{}, part(s, digest, a.files["big"]), a.files["big"])
		write(childT{}, part(s, digest, runScript), runScript)
		if _, err := s.Complete(childT{}.Context(), digest); err != nil {
			return err
		}
		whole(childT{}, s, "1")
		return s.Close()
	}
	children["left bundle"] = func(args []string) error {
		s, err := smallDisk(args)
		if err != nil {
			return err
		}
		if err := s.rebuilding.take(childT{}.Context()); err != nil { // that room is not meant here
			return err
		}
		digest, id, b := bundled(childT{}, s, random("1", 6<<20), nil)
		begun, cut := make(chan struct{}), make(chan struct{})
		ended := make(chan error, 1)
		go func() {
			ended <- s.Receive(childT{}.Context(), digest, id, 0, io.MultiReader(bytes.NewReader(b[:5<<20]), readerFunc(func([]byte) (int, error) {
				close(begun)
				<-cut
				return 0, io.ErrUnexpectedEOF
			})))
		}()
		<-begun
		_, raw, _ := random("2", 6<<20).manifest(childT{})
		if _, err := s.Plan(childT{}.Context(), raw, alone); !errors.Is(err, api.ErrDiskSpace) || nothingLeft(s) == nil {
			return fmt.Errorf("one that is being received gave way: %w", err)
		}
		close(cut)
		if err := <-ended; !errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("receive: %w", err)
		}
		if _, err := s.Plan(childT{}.Context(), raw, alone); err != nil {
			return fmt.Errorf("beside a bundle that nobody sends: %w", err)
		}
		return errors.Join(nothingLeft(s), s.Close())
	}
}

// nothingLeft tells which bundles are there.
func nothingLeft(s *Store) error {
	left, err := filepath.Glob(filepath.Join(s.Dir(), "incoming", "*", bundlePrefix+"*"))
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("%d bundles are left", len(left))
	}
	return err
}
