package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

// pushMany pushes releases 1 to n, a minute apart.
func pushMany(t *testing.T, s *Store, n int) []*Release {
	t.Helper()
	var all []*Release
	for i := 1; i <= n; i++ {
		r := push(t, s, app{version: fmt.Sprint(i), files: map[string]string{"sub/f": fmt.Sprint(i), "sub/same": "same"}})
		when := time.Now().Add(time.Duration(i-n) * time.Minute)
		must(t, os.Chtimes(filepath.Join(r.Dir, "manifest.json"), when, when))
		all = append(all, r)
	}
	return all
}

func listed(t *testing.T, s *Store) []string {
	t.Helper()
	list, err := s.List()
	must(t, err)
	var all []string
	for _, info := range list {
		all = append(all, info.Version)
	}
	return all
}

func TestPruningKeepsWhatIsNeededAndTheNewest(t *testing.T) {
	s := open(t, t.TempDir())
	r := pushMany(t, s, 8)
	must(t, s.SaveState(State{NextGeneration: 1, Committed: &r[2].Ref, Previous: &r[0].Ref}))
	must(t, s.SetCurrent("2")) // an old link, as after a crash
	draining := r[3].Digest
	gone, err := s.Prune(t.Context(), 1, func(digest string) bool { return digest == draining })
	must(t, err)
	if want := []string{"7", "6", "5"}; !slices.Equal(gone, want) {
		t.Errorf("gone: %v, want %v", gone, want)
	}
	if got, want := listed(t, s), []string{"8", "4", "3", "2", "1"}; !slices.Equal(got, want) {
		t.Errorf("left: %v, want %v", got, want)
	}
	for _, v := range listed(t, s) {
		whole(t, s, v) // they share files with those that are gone
	}
	if gone, err := s.Prune(t.Context(), 1, func(digest string) bool { return digest == draining }); err != nil || len(gone) != 0 {
		t.Errorf("again: %v, %v", gone, err)
	}
}

func TestWhatIsNeededCannotBeRemoved(t *testing.T) {
	s := open(t, t.TempDir())
	r := pushMany(t, s, 4)
	must(t, s.SaveState(State{NextGeneration: 1, Committed: &r[0].Ref, Previous: &r[1].Ref}))
	inUse := func(digest string) bool { return digest == r[2].Digest }
	for _, v := range []string{"1", "2", "3"} {
		if err := s.Remove(t.Context(), v, inUse); !errors.Is(err, api.ErrConflict) {
			t.Errorf("remove %s: %v", v, err)
		}
	}
	must(t, s.Remove(t.Context(), "4", inUse))
	if err := s.Remove(t.Context(), "4", inUse); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("twice: %v", err)
	}
}

func TestReleasesAreListedWithWhatBecameOfThem(t *testing.T) {
	s := open(t, t.TempDir())
	r := pushMany(t, s, 4)
	must(t, s.SaveState(State{NextGeneration: 1, Committed: &r[1].Ref, Previous: &r[2].Ref}))
	at := func(minute int) *time.Time { v := time.Unix(int64(minute)*60, 0).UTC(); return &v }
	for _, u := range []api.Upgrade{
		{ID: "a", Kind: api.KindPush, To: r[1].Ref, Outcome: api.Done, Finished: at(1)},
		{ID: "b", Kind: api.KindPush, To: r[2].Ref, Outcome: api.Done, Finished: at(2)},
		{ID: "c", Kind: api.KindPush, To: r[3].Ref, Outcome: api.NothingChanged, Finished: at(3)},
		{ID: "d", Kind: api.KindRollback, To: r[1].Ref, Outcome: api.Done, Finished: at(4)},
		{ID: "e", Kind: api.KindStart, To: r[1].Ref, Outcome: api.Done, Finished: at(5)},
	} {
		must(t, s.AppendHistory(u))
	}
	damage(t, filepath.Join(r[0].Dir, "manifest.json"), "{}") // it must not hide the others
	list, err := s.List()
	must(t, err)
	for i, want := range []struct {
		version, state string
		committed      *time.Time
	}{{"4", "", nil}, {"3", "previous", at(2)}, {"2", "committed", at(4)}} {
		got := list[i]
		if got.Version != want.version || got.State != want.state || (got.Committed == nil) != (want.committed == nil) ||
			got.Committed != nil && !got.Committed.Equal(*want.committed) || got.Files != 3 || got.Completed.IsZero() {
			t.Errorf("%d: got %+v, want %+v", i, got, want)
		}
	}
	if len(list) != 3 {
		t.Errorf("%d releases", len(list))
	}
}
