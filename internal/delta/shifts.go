package delta

import (
	"cmp"
	"slices"
	"sort"
)

// op is what makes one stretch of the new file: some literal bytes, then bytes of the old file, with differences.
type op struct {
	literal  int64
	old, new int64 // where the copy begins in either file
	length   int64 // of the copy
}

const (
	pageBits   = 12
	leastMoved = 256      // shorter copies are often taken from somewhere else
	beyond     = 64 << 20 // what comes after a file in memory moves with its end
)

// shifts tells by how much what lay somewhere in the old file has moved. Numbers in the old file that are the place of something
// there are expected to change by that much.
type shifts struct {
	ops    []op    // by place in the old file
	pages  []int32 // the op in ops that is on at the beginning of each page, or the one before it
	origin int64   // place in the old file where pages begins
}

func newShifts(ops []op) *shifts {
	s := new(shifts)
	sorted := slices.DeleteFunc(slices.Clone(ops), func(o op) bool { return o.length < leastMoved })
	slices.SortStableFunc(sorted, func(a, b op) int { return cmp.Compare(a.old, b.old) })
	end := int64(0)
	for _, o := range sorted {
		if o.old+o.length > end { // else it repeats a part of another
			s.ops = append(s.ops, o)
			end = o.old + o.length
		}
	}
	if len(s.ops) > 0 {
		s.origin = s.ops[0].old &^ (1<<pageBits - 1)
		s.index()
	}
	return s
}

// index makes the table of pages, unless it would be too large.
func (s *shifts) index() {
	last := s.ops[len(s.ops)-1]
	n := (last.old+last.length-s.origin)>>pageBits + 1
	if n > maxPages {
		return
	}
	s.pages = make([]int32, n)
	page := int64(0)
	for i, o := range s.ops {
		for ; page <= (o.old-s.origin)>>pageBits; page++ {
			s.pages[page] = int32(max(i-1, 0))
		}
	}
	for ; page < n; page++ {
		s.pages[page] = int32(len(s.ops) - 1)
	}
}

// at is the shift of the last copy that begins at or before a place in the old file. Of what is between two copies the one before
// it is as good as any.
func (s *shifts) at(place int64) (shift int64, ok bool) {
	page := (place - s.origin) >> pageBits
	if place < s.origin || len(s.pages) == 0 {
		return 0, false
	}
	if page >= int64(len(s.pages)) {
		last := s.ops[len(s.ops)-1]
		return last.new - last.old, place < last.old+last.length+beyond
	}
	i := int(s.pages[page])
	if s.ops[i].old > place {
		return 0, false
	}
	after := s.ops[i+1:] // halved, not walked: a hostile delta could put all its copies on one page
	if page+1 < int64(len(s.pages)) {
		after = after[:min(int(s.pages[page+1])+1-i, len(after))]
	}
	i += sort.Search(len(after), func(k int) bool { return after[k].old > place })
	return s.ops[i].new - s.ops[i].old, true
}
