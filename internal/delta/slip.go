package delta

import (
	"encoding/binary"
	"math/bits"
)

// Where something was put into a table of which every number has changed, no seed tells so, and the shift before it still makes half of
// the bytes equal. So an extension counts the bytes that are odd: neither equal nor part of a number that has changed by as much
// as one of the last four. Where there are many, the shifts nearby are tried.

const (
	checkEvery = 512 // bytes
	oddAtMost  = 40  // of these
	nearAfter  = 64  // bytes without a match after which the shifts nearby are tried too
	nearShift  = 64
	maxSlips   = 4096 // tries in a segment
)

// slips bounds what is spent on trying.
type slips struct {
	left  int
	fails int // in a row
	wait  int // occasions to be passed by
}

// slip is by how much the shift is better changed at that place; zero: not at all.
func (m *matcher) slip(at, i int) int {
	if m.slips.left == 0 || m.slips.wait > 0 {
		m.slips.wait = max(0, m.slips.wait-1)
		return 0
	}
	n := min(2*checkEvery, len(m.new)-i, len(m.old)-at)
	slip := m.nearby(at, i, n, m.odd(at, i, n, n)/2)
	if slip != 0 {
		m.slips.fails = 0
	} else {
		m.slips.fails = min(m.slips.fails+1, 6)
		m.slips.wait = 1 << m.slips.fails
	}
	return slip
}

// tryNear looks whether new goes on, where the last match ended, as old does a little before or after.
func (m *matcher) tryNear() bool {
	i := m.done
	at := i + m.shifts[0]
	n := min(2*checkEvery, len(m.new)-i)
	if m.slips.left == 0 {
		return false
	}
	slip := m.nearby(at, i, n, n/4)
	return slip != 0 && m.extend(i, at+slip, nearGain, lastShifts-1)
}

// nearby finds the other shift by which the fewest of n bytes are odd, if that is fewer than a limit.
func (m *matcher) nearby(at, i, n, limit int) (slip int) {
	m.slips.left--
	for by := -nearShift; by <= nearShift; by++ {
		if by == 0 || at+by < 0 || at+by+n > len(m.old) {
			continue
		}
		if odd := m.odd(at+by, i, n, limit); odd < limit {
			limit, slip = odd, by
		}
	}
	return slip
}

// odd counts odd bytes, up to a limit.
func (m *matcher) odd(at, i, n, limit int) (odd int) {
	var e explainer
	old, new := m.old[at:at+n], m.new[i:i+n]
	for k := 0; k < n && odd < limit; {
		step, how := e.explain(old, new, k)
		if k += step; how == odder {
			odd += step
		}
	}
	return odd
}

// explainer has the last four changes of numbers.
type explainer [4]uint32

// How bytes compare.
const (
	equal = iota
	moved // part of a number that has changed as one before it
	odder
)

// explain tells how the bytes at k compare, and how many do so.
func (e *explainer) explain(old, new []byte, k int) (n, how int) {
	if k+8 > len(old) {
		if old[k] == new[k] {
			return 1, equal
		}
		return 1, odder
	}
	differ := binary.LittleEndian.Uint64(old[k:]) ^ binary.LittleEndian.Uint64(new[k:])
	if differ == 0 {
		return 8, equal
	}
	if same := bits.TrailingZeros64(differ) / 8; same > 0 {
		return same, equal
	}
	by := binary.LittleEndian.Uint32(new[k:]) - binary.LittleEndian.Uint32(old[k:])
	if by == e[0] || by == e[1] || by == e[2] || by == e[3] {
		return 4, moved
	}
	e[0], e[1], e[2], e[3] = by, e[0], e[1], e[2]
	return 1, odder
}
