package upgrade

import "fmt"

// httpCodec follows the requests and answers of HTTP/1.x until one of them opens a WebSocket. Heads are held until they are complete, so
// that an opening can be edited; an idle connection therefore never has a byte delivered that would have to be replayed.
type httpCodec struct {
	body              bodyFramer // of the request under way
	answer            bodyFramer // of the answer under way
	looked            int        // bytes of the held head that were looked at
	asked             uint8      // requests delivered, not answered
	heads             uint64     // one bit for each of them: HEAD; the lowest is the oldest
	answering, asking bool
	served            bool // has answered
	owes              bool // counts as busy until it has answered once more

	opening  []byte // the request head that waits for its 101, as the client sent it
	edited   []byte // what to deliver instead of the head just looked at; taken by the connection
	outHead  []byte // an answer's head as far as it was written
	why      Reason
	switched *wsCodec // set when the 101 is written
}

func newHTTPCodec() codec { return &httpCodec{} }

// maxHead bounds a request head that is held; a longer one is delivered as it comes and the connection stays.
const maxHead = MaxOpening

// maxAsked bounds the requests on their way through a server that reads ahead.
const maxAsked = 60

func (c *httpCodec) in(b []byte) (n int, end bool, err error) {
	if c.why != "" {
		return len(b), true, nil // it stays, and may be anything by now
	}
	if c.asking {
		n, end, err = c.body.Next(b)
		c.asking = !end
		return n, end, err
	}
	if c.opening != nil {
		return 0, false, c.room(b) // whose bytes these are depends on the answer
	}
	skip := emptyLines(b)
	if skip == len(b) {
		return 0, false, nil
	}
	size := headEnd(b[skip:], c.looked)
	if size == 0 {
		if !isMethod(b[skip]) {
			return 0, false, ErrFraming
		}
		c.looked = len(b) - skip
		return 0, false, c.room(b)
	}
	c.looked = 0
	return c.head(b[:skip+size], skip)
}

func (c *httpCodec) room(b []byte) error {
	if len(b) > maxHead {
		return fmt.Errorf("%w: more than %d bytes of a request's head", ErrFraming, maxHead)
	}
	return nil
}

func isMethod(c byte) bool { return c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' }

// head takes a complete request head with skip empty bytes before it.
func (c *httpCodec) head(b []byte, skip int) (n int, end bool, err error) {
	h, err := parseRequest(b[skip:])
	if err != nil {
		return 0, false, err
	}
	if c.asked == maxAsked || h.isConnect {
		return 0, false, ErrFraming
	}
	if h.isHead {
		c.heads |= 1 << c.asked
	}
	c.asked++
	if h.upgrade && !h.chunked && h.length <= 0 {
		c.opening = append([]byte(nil), b[skip:]...)
		c.edited = editOffer(c.opening)
	}
	c.body = h.body()
	c.asking = c.body.step != bodyNone
	return len(b), !c.asking, nil
}

func (c *httpCodec) missing() int64 { return 0 }

func (c *httpCodec) out(b []byte, told bool) int {
	if told {
		return 0 // nothing was asked: it is a complaint about the read error
	}
	for n := 0; n < len(b) && c.why == ""; {
		k, err := c.outSome(b[n:])
		if err != nil {
			c.why = ReasonUnknown
		}
		n += k
	}
	return len(b)
}

// outSome follows an answer for some bytes.
func (c *httpCodec) outSome(b []byte) (n int, err error) {
	if c.switched != nil {
		return c.switched.out(b, false), nil
	}
	if !c.answering {
		return c.outStart(b)
	}
	n, end, err := c.answer.Next(b)
	if end {
		c.answered()
	}
	return n, err
}

// outStart collects the head of an answer.
func (c *httpCodec) outStart(b []byte) (n int, err error) {
	whole := b
	if len(c.outHead) > 0 {
		whole = append(c.outHead, b...)
	}
	size := headEnd(whole, len(c.outHead))
	if size == 0 {
		if len(whole) > maxHead {
			return 0, ErrFraming
		}
		c.outHead = append(c.outHead, b...)
		return len(b), nil
	}
	n = size - len(c.outHead)
	c.outHead = nil
	h, err := parseResponse(whole[:size])
	if err != nil {
		return n, err
	}
	return n, c.outBegin(h, whole[:size])
}

// outBegin acts on a complete head of an answer.
func (c *httpCodec) outBegin(h head, b []byte) error {
	if h.status == 101 {
		return c.switchOver(h, b)
	}
	if h.status < 200 {
		return nil
	}
	if c.asked == 0 {
		return ErrFraming
	}
	if h.close {
		c.why = ReasonClosing
	}
	c.answer = h.responseBody(c.heads&1 != 0)
	switch c.answer.step {
	case bodyEndless:
		c.why = ReasonClosing
	case bodyNone:
		c.answered()
		return nil
	}
	c.answering = true
	return nil
}

// sent counts n bytes of an answer's body that did not pass through here.
func (c *httpCodec) sent(n int64) {
	if n > c.answer.left {
		c.why = ReasonUnknown
		return
	}
	if c.answer.left -= n; c.answer.left == 0 {
		c.answer.step = bodyNone
		c.answered()
	}
}

// answered counts one request off.
func (c *httpCodec) answered() {
	c.answering, c.opening = false, nil
	c.served, c.owes = true, false
	c.asked--
	c.heads >>= 1
}

// switchOver is called with a 101.
func (c *httpCodec) switchOver(h head, b []byte) error {
	if c.opening == nil || !h.upgrade || c.asked != 1 {
		return ErrFraming
	}
	c.switched = &wsCodec{shake: newHandshake(c.opening, b)}
	if !c.switched.shake.movable() {
		c.switched.why = ReasonCompression
	}
	c.opening = nil
	return nil
}

func (c *httpCodec) replays() bool { return false }
func (c *httpCodec) stays() Reason { return c.why }

// busy: a request in flight is waited for. A Read of a single byte is net/http watching for the client to go away while a handler runs, even
// if the answer is complete: an error there would cancel the request's context.
func (c *httpCodec) busy(size int) bool { return c.asked > 0 || c.asking || c.owes || size < 2 }

// taken: a Read of more than net/http's watching byte, while an answer is due. Whoever has taken the connection over wants what comes, and as it comes.
func (c *httpCodec) taken(size int) bool {
	return size > 1 && c.asked > 0 && !c.asking && c.opening == nil
}

func (c *httpCodec) settled() bool { return !c.answering && len(c.outHead) == 0 }
