package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// What goes is on the disk only once all the while, and comes back without a byte being sent or copied.
func TestWithdrawnReleaseIsAnUploadThatHasArrived(t *testing.T) {
	s := open(t, t.TempDir())
	first := push(t, s, app{version: "1"})
	must(t, s.SaveState(State{NextGeneration: 1, Committed: &first.Ref}))
	two := app{version: "2", files: map[string]string{"a/new*": "only here", "b": "only here", "same": runScript, "link": "->a/new", "none": ""}}
	r := push(t, s, two)
	before, err := os.Stat(filepath.Join(r.FilesDir, "a/new"))
	must(t, err)

	must(t, s.Withdraw(t.Context(), r.Ref, nil))
	if got := listed(t, s); !slices.Equal(got, []string{"1"}) {
		t.Errorf("releases %v", got)
	}
	if _, has := s.Find(r.Digest); has {
		t.Error("it is found by its digest")
	}
	if missing, _ := plan(t, s, two); len(missing) > 0 {
		t.Errorf("to be sent again: %v", missing)
	}
	push(t, s, two)
	after, err := os.Stat(filepath.Join(whole(t, s, "2").FilesDir, "a/new"))
	must(t, err)
	if !os.SameFile(before, after) {
		t.Error("the content was copied")
	}
}

func TestWithdrawLeavesWhatIsNeeded(t *testing.T) {
	s := open(t, t.TempDir())
	r := pushMany(t, s, 4)
	must(t, s.SaveState(State{NextGeneration: 1, Committed: &r[0].Ref, Previous: &r[1].Ref}))
	runs := r[2].Digest
	for i := range 3 {
		if err := s.Withdraw(t.Context(), r[i].Ref, func(digest string) bool { return digest == runs }); !errors.Is(err, api.ErrConflict) {
			t.Errorf("%d: %v", i+1, err)
		}
	}
	for _, ref := range []release.Ref{{Version: "4", Digest: runs}, {Version: "9", Digest: runs}} { // another by now; gone already
		must(t, s.Withdraw(t.Context(), ref, nil))
	}
	if got := listed(t, s); len(got) != 4 {
		t.Errorf("releases %v", got)
	}
}

func TestArrivedReleasesAreBounded(t *testing.T) {
	st := State{}
	for i := range 2 * maxArrived {
		st.Arrive(fmt.Sprint(i))
	}
	st.Arrive("20")
	if n := len(st.Arrived); n != maxArrived || st.Arrived[n-1] != "20" || slices.Index(st.Arrived, "20") != n-1 {
		t.Errorf("%v", st.Arrived)
	}
	was := st
	st.Settle("31")
	if slices.Contains(st.Arrived, "31") || !slices.Contains(was.Arrived, "31") {
		t.Errorf("%v, and before %v", st.Arrived, was.Arrived)
	}
}
