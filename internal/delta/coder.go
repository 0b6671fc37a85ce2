package delta

import (
	"io"
)

// coder is both ends of a binary arithmetic code: [coder.code] writes the bit that it is given, or returns the one that was written.
// Models are thus written down once and cannot differ between the two.
type coder struct {
	decoding  bool
	low, high uint32
	value     uint32 // decoding: the window of the input
	out       []byte // encoding
	in        io.ByteReader
	missing   int // bytes that were read beyond the end of the input
	err       error
}

func newEncoder() *coder { return &coder{high: 1<<32 - 1} }

func newDecoder(in io.ByteReader) *coder {
	c := &coder{decoding: true, high: 1<<32 - 1, in: in}
	for range 4 {
		c.value = c.value<<8 | uint32(c.next())
	}
	return c
}

// code codes one bit that is 1 with probability p / 65536; 0 < p < 65536.
func (c *coder) code(p uint32, bit int) int {
	span := c.high - c.low
	mid := c.low + uint32(uint64(span)*uint64(p)>>16)
	if c.decoding {
		bit = 0
		if c.value <= mid {
			bit = 1
		}
	}
	if bit != 0 {
		c.high = mid
	} else {
		c.low = mid + 1
	}
	for (c.low^c.high)>>24 == 0 {
		c.shift()
	}
	return bit
}

func (c *coder) shift() {
	if c.decoding {
		c.value = c.value<<8 | uint32(c.next())
	} else {
		c.out = append(c.out, byte(c.high>>24))
	}
	c.low <<= 8
	c.high = c.high<<8 | 255
}

// next is a byte of the input. A good one is at most three bytes too short, see [coder.finish].
func (c *coder) next() byte {
	b, err := c.in.ReadByte()
	if err == nil {
		return b
	}
	if c.missing++; c.err == nil && (err != io.EOF || c.missing > 4) {
		if c.err = err; err == io.EOF {
			c.err = errShort
		}
	}
	return 0
}

// finish ends the output. What follows it reads as zeros.
func (c *coder) finish() []byte {
	return append(c.out, byte(c.high>>24))
}
