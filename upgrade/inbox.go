package upgrade

import (
	"math/bits"
	"sync"
)

// inbox holds what was read from the wire and must not be forgotten yet: the delivered part of an unfinished message, which is replayed
// if the connection moves now, and what follows it. Between messages of a client that does not write ahead it has no memory.
//
//	block.b:  [ delivered | scanned, to deliver | not scanned ]
//	           0           read                  scanned       len
type inbox struct {
	block   *block
	read    int32 // delivered up to here
	scanned int32 // may be delivered up to here
	end     bool  // a message ends at scanned
	lost    bool  // the start of the unfinished message was given up: it is too long, or is never replayed
}

// between says that the next byte to be delivered is the first of a message.
func (in *inbox) between() bool { return !in.lost && in.read == 0 }

// kept returns all that is held: what the next owner gets first.
func (in *inbox) kept() []byte {
	if in.block == nil {
		return nil
	}
	return in.block.b
}

// ahead returns what was not scanned yet.
func (in *inbox) ahead() []byte {
	if in.block == nil {
		return nil
	}
	return in.block.b[in.scanned:]
}

// deliver copies scanned bytes to p.
func (in *inbox) deliver(p []byte) int {
	if in.read == in.scanned {
		return 0
	}
	n := copy(p, in.block.b[in.read:in.scanned])
	in.read += int32(n)
	if in.read == in.scanned && in.end {
		in.drop(int(in.scanned))
	} else if in.lost {
		in.forget()
	}
	return n
}

// approve lets n more bytes be delivered. With n = 0 and end a message is over that was delivered already.
func (in *inbox) approve(n int, end bool) {
	in.scanned += int32(n)
	in.end = end
	if end && in.read == in.scanned {
		in.drop(int(in.scanned))
	}
}

// drop forgets the message that ends at n.
func (in *inbox) drop(n int) {
	in.end, in.lost = false, false
	in.read, in.scanned = 0, 0
	if in.block == nil {
		return
	}
	rest := copy(in.block.b, in.block.b[n:])
	in.block.b = in.block.b[:rest]
	if rest == 0 {
		in.free()
	}
}

// forget gives up the delivered part of the message under way: from now on it cannot be replayed.
func (in *inbox) forget() {
	in.lost = true
	if in.block == nil {
		return
	}
	rest := copy(in.block.b, in.block.b[in.read:])
	in.block.b = in.block.b[:rest]
	in.scanned -= in.read
	in.read = 0
	if rest == 0 {
		in.free()
	}
}

// journal notes bytes that were delivered without passing through here; more of the message are known to come.
func (in *inbox) journal(b []byte, more int64) {
	if in.lost {
		return
	}
	have := 0
	if in.block != nil {
		have = len(in.block.b)
	}
	if int64(have+len(b))+more > MaxKept {
		in.forget()
		return
	}
	in.room(len(b) + int(more))
	in.block.b = append(in.block.b, b...)
	in.read += int32(len(b))
	in.scanned += int32(len(b))
}

// mayJournal says that a message is under way, all of it delivered so far, and that it can be kept with the n bytes that it lacks.
func (in *inbox) mayJournal(n int64) bool {
	return in.block != nil && !in.lost && in.read > 0 && int(in.read) == len(in.block.b) && int64(in.read)+n <= MaxKept
}

// add notes bytes that were not scanned.
func (in *inbox) add(b []byte) {
	if len(b) > 0 {
		in.room(len(b))
		in.block.b = append(in.block.b, b...)
	}
}

// replace puts b in the place of the next n bytes and lets all of it be delivered.
func (in *inbox) replace(n int, b []byte) {
	rest := append([]byte(nil), in.block.b[int(in.scanned)+n:]...)
	in.block.b = in.block.b[:in.scanned]
	in.add(b)
	in.add(rest)
	in.scanned += int32(len(b))
	in.end = true
}

// room makes sure that n more bytes fit.
func (in *inbox) room(n int) {
	if in.block == nil {
		in.block = newBlock(n)
	} else if have := len(in.block.b); have+n > cap(in.block.b) {
		old := in.block
		in.block = newBlock(max(have+n, min(2*have, MaxKept)))
		in.block.b = append(in.block.b, old.b...)
		old.free()
	}
}

func (in *inbox) free() {
	in.block.free()
	in.block = nil
}

// block is memory from a pool, in sizes of powers of four from 1 KiB to 1 MiB.
type block struct{ b []byte }

const smallestBlock = 10 // as a power of two

var blocks [6]sync.Pool

// class returns which pool has blocks for n bytes, and their size; -1 if none has.
func class(n int) (i, size int) {
	if n > MaxKept {
		return -1, n
	}
	i = max(0, (bits.Len(uint(max(n, 1)-1))-smallestBlock+1)/2)
	return i, 1 << (smallestBlock + 2*i)
}

func newBlock(n int) *block {
	i, size := class(n)
	if i >= 0 {
		if b, ok := blocks[i].Get().(*block); ok {
			return b
		}
	}
	return &block{make([]byte, 0, size)}
}

func (b *block) free() {
	if i, size := class(cap(b.b)); i >= 0 && size == cap(b.b) {
		b.b = b.b[:0]
		blocks[i].Put(b)
	}
}
