package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

func historyOf(s *Store) string { return filepath.Join(s.Dir(), "state/history.jsonl") }

func ids(t *testing.T, s *Store, n int) string {
	t.Helper()
	list, err := s.History(n)
	must(t, err)
	var all []string
	for _, u := range list {
		all = append(all, u.ID)
	}
	return strings.Join(all, " ")
}

func TestHistoryIsToldFromTheNewestOn(t *testing.T) {
	s := open(t, t.TempDir())
	if got := ids(t, s, 10); got != "" {
		t.Errorf("at first: %q", got)
	}
	for i := range 500 { // longer than what is read at once
		must(t, s.AppendHistory(api.Upgrade{ID: fmt.Sprint(i), By: strings.Repeat("y", i)}))
	}
	if got := ids(t, s, 3); got != "499 498 497" {
		t.Errorf("3: %q", got)
	}
	if got := strings.Fields(ids(t, s, 9999)); len(got) != 500 || got[499] != "0" {
		t.Errorf("all: %d", len(got))
	}
	if got := ids(t, s, 0) + ids(t, s, -1); got != "" {
		t.Errorf("0: %q", got)
	}
	for _, id := range []string{"0", "250", "499"} {
		if u, err := s.FindUpgrade(id); err != nil || u.ID != id || fmt.Sprint(len(u.By)) != id {
			t.Errorf("find %s: %+v, %v", id, u, err)
		}
	}
	for _, id := range []string{"", "500", "yy", `"`} {
		if u, err := s.FindUpgrade(id); !errors.Is(err, api.ErrNotFound) {
			t.Errorf("find %q: %+v, %v", id, u, err)
		}
	}
}

func TestHistoryIsCutToItsNewestEntries(t *testing.T) {
	s := open(t, t.TempDir())
	long := strings.Repeat("y", maxLineBytes/2)
	n, most := 0, int64(0)
	for range 3 * maxHistoryBytes / len(long) {
		n++
		must(t, s.AppendHistory(api.Upgrade{ID: fmt.Sprint(n), By: long}))
		fi, err := os.Stat(historyOf(s))
		must(t, err)
		most = max(most, fi.Size())
	}
	if most > maxHistoryBytes {
		t.Errorf("it has grown to %d bytes", most)
	}
	list, err := s.History(maxHistory)
	must(t, err)
	if len(list) < keptHistory/maxLineBytes {
		t.Errorf("only %d entries are left", len(list))
	}
	for i, u := range list {
		if u.ID != fmt.Sprint(n-i) || u.By != long {
			t.Fatalf("entry %d is %s", i, u.ID)
		}
	}
}

func TestManyWriteHistoryAtOnce(t *testing.T) {
	s := open(t, t.TempDir())
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if err := s.AppendHistory(api.Upgrade{ID: fmt.Sprint(i)}); err != nil {
				t.Error(err)
			}
			if _, err := s.History(5); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := strings.Fields(ids(t, s, 100)); len(got) != 20 {
		t.Errorf("%d lines", len(got))
	}
}

func TestATornLastLineIsIgnoredAndRepaired(t *testing.T) {
	for name, c := range map[string]struct{ tail, want string }{
		"half a line":            {`{"id":"torn","ki`, "new old"},
		"zeroes":                 {strings.Repeat("\x00", 5000), "new old"},
		"half a line, very long": {`{"id":"torn","by":"` + strings.Repeat("x", 200<<10), "new old"},
		"all but its end":        {`{"id":"torn"}`, "new torn old"},
		"nothing":                {"", "new old"},
		"something else":         {"ls -l\n[]\n{}\nnull\n", "new old"},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, t.TempDir())
			must(t, s.AppendHistory(api.Upgrade{ID: "old"}))
			f, err := os.OpenFile(historyOf(s), os.O_WRONLY|os.O_APPEND, 0)
			must(t, err)
			_, err = f.WriteString(c.tail)
			must(t, errors.Join(err, f.Close()))
			if got := ids(t, s, 10); got != "old" {
				t.Errorf("before: %q", got)
			}
			must(t, s.AppendHistory(api.Upgrade{ID: "new"}))
			if got := ids(t, s, 10); got != c.want {
				t.Errorf("after: %q", got)
			}
		})
	}
}

func TestAHistoryThatIsNothingButATornLine(t *testing.T) {
	s := open(t, t.TempDir())
	write(t, historyOf(s), "rubbish")
	must(t, s.AppendHistory(api.Upgrade{ID: "new"}))
	if got := ids(t, s, 10); got != "new" {
		t.Errorf("%q", got)
	}
}

func TestAnEntryTooLongLosesTheOutputThenIsRefused(t *testing.T) {
	s := open(t, t.TempDir())
	must(t, s.AppendHistory(api.Upgrade{ID: "a", Error: &api.Error{Code: "exited", Message: "m", Output: []string{strings.Repeat("x", maxLineBytes)}}}))
	if u, err := s.FindUpgrade("a"); err != nil || u.Error.Message != "m" || len(u.Error.Output) != 1 {
		t.Errorf("%+v, %v", u, err)
	}
	if err := s.AppendHistory(api.Upgrade{ID: "b", By: strings.Repeat("x", maxLineBytes)}); err == nil {
		t.Error("accepted")
	}
	if got := ids(t, s, 10); got != "a" {
		t.Errorf("%q", got)
	}
}

func TestLinesThatAreTooLongOrNoneAreLeftOut(t *testing.T) {
	s := open(t, t.TempDir())
	long := `{"id":"long","by":"` + strings.Repeat("x", 3*maxLineBytes) + `"}`
	write(t, historyOf(s), `{"id":"a"}`+"\n\n"+long+"\nrubbish\n"+`{"id":"b"}`+"\n"+long+"\n")
	if got := ids(t, s, 10); got != "b a" {
		t.Errorf("%q", got)
	}
}

// backwards must give what splitting the text at its newlines gives.
func FuzzBackwards(f *testing.F) {
	f.Add([]byte("a\nbb\nccc\n"), 4)
	f.Add([]byte("\n\n"), 1)
	f.Add([]byte("torn"), 2)
	f.Add([]byte("longer than most\nx\n"), 3)
	f.Fuzz(func(t *testing.T, text []byte, most int) {
		if most < 1 || most > 100 {
			return
		}
		var got, want [][]byte
		err := backwards(bytes.NewReader(text), int64(len(text)), most, func(line []byte) bool {
			got = append(got, bytes.Clone(line))
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(text) {
			if line, whole := bytes.CutSuffix(line, []byte("\n")); whole && len(line) < most {
				want = append(want, line)
			}
		}
		slices.Reverse(want)
		if !slices.EqualFunc(got, want, bytes.Equal) {
			t.Errorf("most %d: got %q, want %q", most, got, want)
		}
	})
}

// Whatever lies in the log, an entry can be added and is found, and a second look finds the same.
func FuzzHistory(f *testing.F) {
	f.Add([]byte(`{"id":"a"}` + "\n" + `{"id":"b"`))
	f.Add([]byte("\x00\n{}\n"))
	f.Add([]byte(`{"id":"a","error":{"output":["x"]}}`))
	dir := f.TempDir()
	s, err := Open(dir, "chat")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		write(t, historyOf(s), string(text))
		before, err := s.History(100)
		must(t, err)
		must(t, s.AppendHistory(api.Upgrade{ID: "new one"}))
		after, err := s.History(101)
		must(t, err)
		if len(after) == 0 || after[0].ID != "new one" || len(after) < len(before)+1 && len(after) < 101 || len(after) > len(before)+2 {
			t.Errorf("%d entries, then %d", len(before), len(after))
		}
	})
}
