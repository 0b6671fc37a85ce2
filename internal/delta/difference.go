package delta

import (
	"bytes"
	"encoding/binary"
)

// The difference between a copied stretch of the old file and what the new one has there is mostly nothing, and otherwise mostly this: a
// number of four bytes that is the place of something, as the old file had it, and that something has moved. The model therefore
// asks at each byte whether it has changed; if so, whether the number that begins here moved along with what it names (seen from
// here, as in a jump, or from the beginning, as in a pointer), or as the last one did that was almost as large, or by as much as
// another before it; and only then for the byte. What it asks is foretold by the bytes before, by how far apart changes are and how
// they lie, and by which of these guesses there are at all.

const (
	pieceSize  = 64 << 10 // no number crosses the end of a piece
	quietSize  = 128      // bytes that are asked for at once whether they are all the same
	quietAfter = 60       // only where so many are
	recents    = 16       // differences that are remembered
	likeBits   = 13       // numbers that differ in no more than these are of the same place
	likePlaces = 1 << 12
	maxSince   = 63
	maxGap     = 15
	tableBits  = 14 // of the tables that are used by a hash
	expects    = 8  // which of the three guesses there are
)

// The kinds of a change.
const (
	kindSame = iota
	kindRelative
	kindAbsolute
	kindLike
	kindRecent
	kindFresh
	kindByte
	kinds
)

// difference codes the differences of one segment.
type difference struct {
	c      *coder
	shifts *shifts
	base   int64 // what is added to a place in the file to make it a pointer

	quiet   []prob
	byCode  []prob // has it changed: by the two bytes before
	bySince []prob // by how long ago the last change was
	byPlace []prob // by alignment
	byValue []prob // by what the number is
	changed *mixer

	relative, absolute, like, recent, fresh, which, value, number []prob

	likes      [likePlaces]uint32 // how the last number of a place changed
	recentList [recents]uint32
	worth      []uint8 // encoding: how often a difference occurs, by a hash of it
	since      int     // bytes since the last change began
	gap        int     // the one before that
	last       int     // its kind
	calm       int     // the last answers to whether all was the same
	prev       uint32  // the bytes before, of the new file
}

func newDifference(c *coder, s *shifts, base int64) *difference {
	d := &difference{c: c, shifts: s, base: base,
		quiet: make([]prob, 256), byCode: make([]prob, 1<<tableBits), byValue: make([]prob, 1<<tableBits),
		bySince: make([]prob, expects*kinds*(maxSince+1)*(maxGap+1)), byPlace: make([]prob, expects*kinds*16*32),
		changed: newMixer(4, expects*32), relative: make([]prob, kinds*256), absolute: make([]prob, kinds*256), like: make([]prob, kinds*256),
		recent: make([]prob, kinds*(maxSince+1)), fresh: make([]prob, kinds), which: make([]prob, kinds*recents),
		value: make([]prob, 2*256), number: make([]prob, 4*256), since: maxSince, gap: maxGap}
	if !c.decoding {
		d.worth = make([]uint8, 1<<16)
	}
	return d
}

// code makes new of old, or writes down how: they are one piece, at those places of the files.
func (d *difference) code(old, new []byte, oldAt, newAt int64) {
	for i := 0; i < len(old); {
		n := min(quietSize, len(old)-i)
		if d.since >= quietAfter && d.isQuiet(old[i:i+n], new[i:i+n]) {
			copy(new[i:i+n], old[i:i+n])
			i += n
			d.since = min(d.since+n, maxSince)
			d.remember(new[:i])
			continue
		}
		for end := i + n; i < end; {
			i += d.step(old, new, i, oldAt, newAt)
		}
	}
}

func (d *difference) isQuiet(old, new []byte) bool {
	bit := 0
	if !d.c.decoding && bytes.Equal(old, new) {
		bit = 1
	}
	bit = d.c.simple(&d.quiet[d.calm], bit)
	d.calm = (d.calm<<1 | bit) & 255
	return bit == 1
}

func (d *difference) remember(done []byte) {
	for _, b := range done[max(0, len(done)-2):] {
		d.prev = d.prev<<8 | uint32(b)
	}
}

// guess is what is expected of the number that begins at some byte.
type guess struct {
	is                       bool // there is room for a number
	old                      uint32
	relative, absolute, like uint32 // by how much it changes; zero: not at all
}

func (d *difference) guess(old []byte, i int, oldAt, newAt int64) (g guess) {
	if i+4 > len(old) {
		return g
	}
	g.is, g.old = true, binary.LittleEndian.Uint32(old[i:])
	here := oldAt + int64(i)
	if moved, ok := d.shifts.at(here + 4 + int64(int32(g.old))); ok {
		g.relative = uint32(moved - (newAt - oldAt))
	}
	if moved, ok := d.shifts.at(int64(g.old) - d.base); ok {
		g.absolute = uint32(moved)
	}
	g.like = d.likes[likeOf(g.old)]
	return g
}

func likeOf(old uint32) uint32 { return old >> likeBits * 0x9e3779b1 % likePlaces }

// step codes one byte that stays, or one change; it returns how many bytes that is.
func (d *difference) step(old, new []byte, i int, oldAt, newAt int64) int {
	g := d.guess(old, i, oldAt, newAt)
	var kind int
	var by uint32
	if !d.c.decoding {
		kind, by = d.classify(g, old, new, i)
	}
	expect := 0
	if g.relative != 0 {
		expect = 1
	}
	if g.absolute != 0 {
		expect |= 2
	}
	if g.like != 0 {
		expect |= 4
	}
	if !d.hasChanged(expect, g, old, i, oldAt, kind != kindSame) {
		new[i] = old[i]
		d.prev = d.prev<<8 | uint32(new[i])
		d.since = min(d.since+1, maxSince)
		return 1
	}
	n := d.change(g, kind, by, old, new, i)
	for _, b := range new[i : i+n] {
		d.prev = d.prev<<8 | uint32(b)
	}
	d.gap = min(d.since, maxGap)
	d.since = min(n, maxSince)
	return n
}

func (d *difference) hasChanged(expect int, g guess, old []byte, i int, oldAt int64, is bool) bool {
	since := min(d.since, 31)
	high := int(g.old >> 24)
	m := d.changed
	m.add(&d.byCode[(uint32(expect)<<16|d.prev&0xffff)*0x9e3779b1>>(32-tableBits)])
	m.add(&d.bySince[((expect*kinds+d.last)*(maxSince+1)+d.since)*(maxGap+1)+d.gap])
	m.add(&d.byPlace[((expect*kinds+d.last)*16+int(oldAt+int64(i))&15)*32+since])
	m.add(&d.byValue[(uint32(expect)<<16|uint32(high)<<8|d.prev&255)*0x9e3779b1>>(32-tableBits)])
	bit := 0
	if is {
		bit = 1
	}
	return m.code(d.c, expect*32+since, 250, bit) == 1
}

// classify finds the cheapest way to say what has become of the byte at i.
func (d *difference) classify(g guess, old, new []byte, i int) (kind int, by uint32) {
	if g.is {
		by = binary.LittleEndian.Uint32(new[i:]) - g.old
		switch {
		case by == 0:
			return kindSame, 0
		case by == g.relative:
			return kindRelative, by
		case by == g.absolute:
			return kindAbsolute, by
		case by == g.like:
			return kindLike, by
		}
	}
	switch {
	case old[i] == new[i]:
		return kindSame, 0
	case !g.is:
		return kindByte, 0
	}
	for _, r := range d.recentList {
		if r == by {
			return kindRecent, by
		}
	}
	if d.worth[worthOf(by)] > 2 {
		return kindFresh, by
	}
	return kindByte, 0
}

func worthOf(by uint32) uint32 { return by * 0x9e3779b1 >> 16 }

// count notes the differences of a piece before it is coded.
func (d *difference) count(old, new []byte) {
	for i := 0; i+8 <= len(old); {
		if binary.LittleEndian.Uint64(old[i:]) == binary.LittleEndian.Uint64(new[i:]) {
			i += 8
			continue
		}
		if old[i] == new[i] {
			i++
			continue
		}
		w := &d.worth[worthOf(binary.LittleEndian.Uint32(new[i:])-binary.LittleEndian.Uint32(old[i:]))]
		if *w < 255 {
			*w++
		}
		i += 4
	}
}

// change codes what has changed, beginning at i.
func (d *difference) change(g guess, kind int, by uint32, old, new []byte, i int) int {
	kind = d.kind(g, kind)
	switch kind {
	case kindRelative:
		by = g.relative
	case kindAbsolute:
		by = g.absolute
	case kindLike:
		by = g.like
	case kindRecent:
		by = d.pick(by)
	case kindFresh:
		by = d.invent(by)
	}
	d.last = kind
	if kind != kindByte {
		d.likes[likeOf(g.old)] = by
		binary.LittleEndian.PutUint32(new[i:], g.old+by)
		return 4
	}
	context := 0
	if d.since == 1 {
		context = 1
	}
	new[i] = old[i] + byte(d.c.tree(d.value[context<<8:][:256], 8, uint32(new[i]-old[i])))
	return 1
}

func (d *difference) kind(g guess, kind int) int {
	ask := func(p *prob, k int) bool {
		bit := 0
		if kind == k {
			bit = 1
		}
		return d.c.simple(p, bit) == 1
	}
	before := int(d.prev & 255)
	switch {
	case !g.is:
		return kindByte
	case g.relative != 0 && ask(&d.relative[d.last<<8|before], kindRelative):
		return kindRelative
	case g.absolute != 0 && ask(&d.absolute[d.last<<8|before], kindAbsolute):
		return kindAbsolute
	case g.like != 0 && ask(&d.like[d.last<<8|before], kindLike):
		return kindLike
	case ask(&d.recent[d.last*(maxSince+1)+d.since], kindRecent):
		return kindRecent
	case ask(&d.fresh[d.last], kindFresh):
		return kindFresh
	}
	return kindByte
}

// pick codes a difference as one of the last, and makes it the very last.
func (d *difference) pick(by uint32) uint32 {
	at := 0
	for i, r := range d.recentList {
		if r == by {
			at = i
			break
		}
	}
	at = int(d.c.tree(d.which[d.last*recents:][:recents], 4, uint32(at)))
	by = d.recentList[at]
	copy(d.recentList[1:at+1], d.recentList[:at])
	d.recentList[0] = by
	return by
}

// invent codes a difference that was not there before.
func (d *difference) invent(by uint32) uint32 {
	out := uint32(0)
	for i := range 4 {
		out |= d.c.tree(d.number[i<<8:][:256], 8, by>>(8*i)&255) << (8 * i)
	}
	copy(d.recentList[1:], d.recentList[:])
	d.recentList[0] = out
	return out
}
