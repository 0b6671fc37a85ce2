package upgrade

import (
	"iter"
)

// numbered are connections by their numbers, which grow by one and are settled in about that order.
type numbered struct {
	base uint32 // number of the first in the list
	list []*sealedConn
	n    int // of them are there
}

func (q *numbered) next() uint32 { return q.base + uint32(len(q.list)) }

func (q *numbered) add(s *sealedConn) {
	q.list = append(q.list, s)
	q.n++
}

func (q *numbered) get(n uint32) *sealedConn {
	if i := n - q.base; i < uint32(len(q.list)) {
		return q.list[i]
	}
	return nil
}

// put puts one back.
func (q *numbered) put(n uint32, s *sealedConn) {
	if n-q.base >= uint32(len(q.list)) { // the list began there once
		q.list = append(make([]*sealedConn, q.base-n), q.list...)
		q.base = n
	}
	q.list[n-q.base] = s
	q.n++
}

func (q *numbered) remove(n uint32) {
	q.list[n-q.base] = nil
	q.n--
	first := 0
	for first < len(q.list) && q.list[first] == nil {
		first++
	}
	q.list, q.base = q.list[first:], q.base+uint32(first)
}

// all goes through a snapshot.
func (q *numbered) all() iter.Seq2[uint32, *sealedConn] {
	base, list := q.base, q.list
	return func(yield func(uint32, *sealedConn) bool) {
		for i, s := range list {
			if s != nil && !yield(base+uint32(i), s) {
				return
			}
		}
	}
}
