package upgrade

import "bytes"

// lineCodec follows lines, and delivers them whole. What reads lines takes the start of one for all of it when a Read fails, as at the end of a file
// (bufio.Scanner, textproto): it must not have a start when the connection moves.
type lineCodec struct {
	plainCodec
	seen int  // bytes without a line feed that were held, and are shown again
	long bool // too long to be held: the start was delivered
}

func newLineCodec() codec { return &lineCodec{} }

func (c *lineCodec) in(b []byte) (n int, end bool, err error) {
	if c.seen == 0 && !c.long && len(b) > 0 && b[0] == tlsHandshake {
		return 0, false, ErrFraming
	}
	if i := bytes.IndexByte(b[c.seen:], '\n'); i >= 0 {
		n = c.seen + i + 1
		*c = lineCodec{}
		return n, true, nil
	}
	if c.long || len(b) > MaxKept {
		c.seen, c.long = 0, true
		return len(b), false, nil
	}
	c.seen = len(b)
	return 0, false, nil
}
