package delta

import (
	"encoding/binary"
	"math/bits"
)

// Matches are found through seeds: the old file's blocks of 16 bytes at multiples of 16 are in a table by their hash, and the new
// file is looked up in it at every byte that no match covers yet. A seed is then extended in both directions, over bytes that
// differ, for as long as more bytes are equal than not. Where a stretch has ended the last few shifts are tried before the table:
// what moved together stays together, also where the content repeats itself.

const (
	seedSize   = 16
	giveUp     = 128 // bytes without a gain after which an extension ends
	minGain    = 24  // equal bytes less different ones that are worth an op
	nearGain   = 12  // the same for one of the last shifts
	lastShifts = 4   // that are tried again
	hurryAfter = 512 // bytes without a match after which not every byte is tried
	maxStride  = 9   // and how seldom at most; odd, so that it comes to every alignment
)

// matcher finds in old what new is made of. Both are in memory: for larger files see window.go.
type matcher struct {
	old, new []byte
	table    []uint32 // place/16 + 1 of a block, by its hash
	bits     int

	ops    []op
	done   int             // new is covered up to here by ops
	shifts [lastShifts]int // old - new
	slips  slips
}

func newMatcher(old []byte) *matcher {
	m := &matcher{old: old}
	blocks := len(m.old) / seedSize
	m.bits = max(8, bits.Len(uint(blocks)))
	m.table = make([]uint32, 1<<m.bits)
	var before uint32
	for i := range blocks {
		h := m.hash(m.old[i*seedSize:])
		if h != before && m.table[h] == 0 { // the first of many alike is as good as any
			m.table[h] = uint32(i) + 1
		}
		before = h
	}
	return m
}

// find covers new with ops. Their places are relative to the two slices.
func (m *matcher) find(new []byte) []op {
	m.new, m.ops, m.done, m.shifts, m.slips = new, nil, 0, [lastShifts]int{}, slips{left: maxSlips}
	m.scan()
	if m.done < len(new) {
		m.ops = append(m.ops, op{literal: int64(len(new) - m.done), new: int64(len(new))})
	}
	return m.ops
}

func (m *matcher) hash(b []byte) uint32 {
	x := binary.LittleEndian.Uint64(b)*0x9e3779b97f4a7c15 ^ bits.RotateLeft64(binary.LittleEndian.Uint64(b[8:])*0xc2b2ae3d27d4eb4f, 31)
	x ^= x >> 29
	return uint32(x * 0xbf58476d1ce4e5b9 >> (64 - m.bits))
}

func (m *matcher) scan() {
	missed := 0
	for i := 0; i+seedSize <= len(m.new) && len(m.ops) < maxOps/2; {
		if m.try(i) || missed == nearAfter && m.tryNear() {
			i, missed = m.done, 0
			continue
		}
		missed++
		i += min(1+missed/hurryAfter*2, maxStride)
	}
}

// try looks for a match at i.
func (m *matcher) try(i int) bool {
	for k, shift := range m.shifts {
		if at := i + shift; at >= 0 && at+8 <= len(m.old) && equal8(m.old[at:], m.new[i:]) && m.extend(i, at, nearGain, k) {
			return true
		}
	}
	at := (int(m.table[m.hash(m.new[i:])]) - 1) * seedSize
	return at >= 0 && equal8(m.old[at:], m.new[i:]) && equal8(m.old[at+8:], m.new[i+8:]) && m.extend(i, at, minGain, lastShifts-1)
}

func equal8(a, b []byte) bool {
	return binary.LittleEndian.Uint64(a) == binary.LittleEndian.Uint64(b)
}

// extend makes an op of the match of new at i with old at at, if it gains enough, and goes on from there with other shifts where
// that is better. The shift takes the place of the k-th of the last ones.
func (m *matcher) extend(i, at, enough, k int) bool {
	back, gained := backward(m.old[:at], m.new[m.done:i])
	ahead, more, slip := m.forward(at, i)
	if gained+more < enough {
		return false
	}
	before := m.done
	m.copy(at-back, i-back, back+ahead, k)
	for i += ahead; slip != 0; i += ahead { // ahead may be 0: then the shift is better changed at once, and what is before i stays literal
		if at = i + m.shifts[0] + slip; at < 0 || at >= len(m.old) {
			break
		}
		if ahead, _, slip = m.forward(at, i); ahead == 0 {
			break
		}
		m.copy(at, i, ahead, lastShifts-1)
	}
	return m.done > before
}

func (m *matcher) copy(at, i, n, k int) {
	copy(m.shifts[1:k+1], m.shifts[:k])
	m.shifts[0] = at - i
	if n > 0 {
		m.ops = append(m.ops, op{literal: int64(i - m.done), old: int64(at), new: int64(i), length: int64(n)})
		m.done = i + n
	}
}

// forward is how long a stretch is best, and by how many bytes more are equal in it than not; numbers that have changed as those before
// them count for half. It also ends where the shift is better changed, by slip.
func (m *matcher) forward(at, i int) (length, gain, slip int) {
	var e explainer
	n := min(len(m.old)-at, len(m.new)-i)
	old, new := m.old[at:at+n], m.new[i:i+n]
	score, odd, checked := 0, 0, 0
	for k := 0; k < n && score > gain-giveUp; {
		step, how := e.explain(old, new, k)
		switch how {
		case equal:
			score += step
		case moved:
			score += step / 2
		case odder:
			score -= step
			odd += step
		}
		if k += step; score >= gain {
			length, gain = k, score
		}
		if k < checked+checkEvery {
			continue
		}
		if odd > oddAtMost {
			if slip = m.slip(at+checked, i+checked); slip != 0 {
				return min(length, checked), gain, slip
			}
		}
		odd, checked = 0, k
	}
	return length, gain, 0
}

// backward is forward from the ends, and simpler.
func backward(old, new []byte) (length, gain int) {
	n := min(len(old), len(new))
	score := 0
	for i := 1; i <= n && score > gain-giveUp; i++ {
		if old[len(old)-i] == new[len(new)-i] {
			score++
		} else {
			score--
		}
		if score >= gain {
			length, gain = i, score
		}
	}
	return length, gain
}
