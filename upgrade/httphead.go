package upgrade

import (
	"bytes"
	"fmt"
	"math"
)

// head is what the framing of HTTP/1.x needs to know of one request or response.
type head struct {
	status    int  // of a response
	isHead    bool // the method is HEAD
	isConnect bool
	upgrade   bool // asks for, or switches to, a WebSocket
	other     bool // asks for, or switches to, another protocol
	close     bool // the connection ends with this message
	chunked   bool
	length    int64 // Content-Length; -1 if there is none
}

// headEnd returns the length of the head that b starts with, 0 if it is not complete. from is where to look first: what was looked at
// before does not hold the end.
func headEnd(b []byte, from int) int {
	for i := max(from-3, 0); ; {
		k := bytes.IndexByte(b[i:], '\n')
		if k < 0 {
			return 0
		}
		i += k + 1
		if i < len(b) && b[i] == '\n' {
			return i + 1
		}
		if i+1 < len(b) && b[i] == '\r' && b[i+1] == '\n' {
			return i + 2
		}
	}
}

// emptyLines counts the bytes of line ends at the start of b: servers skip them before a request.
func emptyLines(b []byte) int {
	n := 0
	for n < len(b) && (b[n] == '\r' || b[n] == '\n') {
		n++
	}
	return n
}

// parseRequest reads a complete request head.
func parseRequest(b []byte) (head, error) {
	line, rest := cutLine(b)
	method, after, ok := bytes.Cut(line, space)
	_, version, ok2 := bytes.Cut(after, space)
	minor, ok3 := httpVersion(version)
	if !ok || !ok2 || !ok3 {
		return head{}, fmt.Errorf("%w: a request line of %d bytes", ErrFraming, len(line))
	}
	h := head{length: -1, isHead: string(method) == "HEAD", isConnect: string(method) == "CONNECT", close: minor == 0}
	return h, h.all(rest, minor)
}

// all reads the header fields. HTTP/1.0 knows no transfer encodings: servers differ in what they make of one (RFC 9112, section 6.1).
func (h *head) all(b []byte, minor int) error {
	err := h.fields(b)
	if err == nil && minor == 0 && h.chunked {
		err = fmt.Errorf("%w: a transfer encoding in HTTP/1.0", ErrFraming)
	}
	return err
}

// parseResponse reads a complete response head.
func parseResponse(b []byte) (head, error) {
	line, rest := cutLine(b)
	version, after, _ := bytes.Cut(line, space)
	minor, ok := httpVersion(version)
	code, _, _ := bytes.Cut(after, space)
	status, err := parseLength(code)
	if !ok || err != nil || len(code) != 3 {
		return head{}, fmt.Errorf("%w: a status line of %d bytes", ErrFraming, len(line))
	}
	h := head{length: -1, status: int(status), close: minor == 0}
	return h, h.all(rest, minor)
}

var (
	space     = []byte(" ")
	comma     = []byte(",")
	websocket = []byte("websocket")
	closeWord = []byte("close")
	keepAlive = []byte("keep-alive")
	chunkWord = []byte("chunked")

	nameUpgrade    = []byte("upgrade")
	nameConnection = []byte("connection")
	nameLength     = []byte("content-length")
	nameEncoding   = []byte("transfer-encoding")
	nameExtensions = []byte("sec-websocket-extensions")
	nameProtocol   = []byte("sec-websocket-protocol")
)

func httpVersion(b []byte) (minor int, ok bool) {
	switch string(b) {
	case "HTTP/1.1":
		return 1, true
	case "HTTP/1.0":
		return 0, true
	}
	return 0, false
}

// fields reads the header fields in b.
func (h *head) fields(b []byte) error {
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			continue // the empty line at the end, or what the server will refuse
		}
		if err := h.field(name, bytes.TrimSpace(value)); err != nil {
			return err
		}
	}
	return nil
}

func (h *head) field(name, value []byte) error {
	switch {
	case bytes.EqualFold(name, nameUpgrade):
		h.upgrade = hasToken(value, websocket)
		h.other = !h.upgrade
	case bytes.EqualFold(name, nameConnection):
		h.close = (h.close || hasToken(value, closeWord)) && !hasToken(value, keepAlive)
	case bytes.EqualFold(name, nameEncoding):
		h.chunked = true
		if !bytes.EqualFold(value, chunkWord) {
			return fmt.Errorf("%w: a transfer encoding other than chunked", ErrFraming)
		}
	case bytes.EqualFold(name, nameLength):
		n, err := parseLength(value)
		if err != nil || h.length >= 0 && n != h.length {
			return fmt.Errorf("%w: a content length that is no number, or two", ErrFraming)
		}
		h.length = n
	}
	return nil
}

// cutLine returns the first line of b without its end, and what follows.
func cutLine(b []byte) (line, rest []byte) {
	line, rest, _ = bytes.Cut(b, []byte("\n"))
	return bytes.TrimSuffix(line, []byte("\r")), rest
}

// hasToken tells whether a comma separated list has the word, in any case.
func hasToken(list, word []byte) bool {
	for len(list) > 0 {
		var item []byte
		item, list, _ = bytes.Cut(list, comma)
		if bytes.EqualFold(bytes.TrimSpace(item), word) {
			return true
		}
	}
	return false
}

func parseLength(b []byte) (int64, error) {
	var n int64
	for _, c := range b {
		if c < '0' || c > '9' || n > (math.MaxInt64-9)/10 {
			return 0, ErrFraming
		}
		n = n*10 + int64(c-'0')
	}
	if len(b) == 0 {
		return 0, ErrFraming
	}
	return n, nil
}

// bodyFramer follows the body of one HTTP message: nothing, so many bytes, or chunks with their trailer.
type bodyFramer struct {
	step bodyStep
	left int64 // of the body, or of the chunk
	line int   // bytes of the line under way
}

type bodyStep uint8

const (
	bodyNone bodyStep = iota // complete
	bodyLength
	bodyEndless // until the connection ends
	chunkSize
	chunkExtension
	chunkData
	chunkEnd // the line end after a chunk
	chunkTrailer
)

// maxChunkLine bounds a line of chunked framing; net/http allows 4,096.
const maxChunkLine = 8 << 10

// Next takes bytes of the body; end: it is complete with the last of the n bytes.
func (f *bodyFramer) Next(b []byte) (n int, end bool, err error) {
	for n < len(b) && f.step != bodyNone {
		switch f.step {
		case bodyEndless:
			return len(b), false, nil
		case bodyLength, chunkData:
			n += f.skip(len(b) - n)
		default:
			if err := f.char(b[n]); err != nil {
				return n, false, err
			}
			n++
		}
	}
	return n, f.step == bodyNone, nil
}

// skip passes over up to n bytes of data.
func (f *bodyFramer) skip(n int) int {
	k := int(min(int64(n), f.left))
	f.left -= int64(k)
	if f.left == 0 && f.step == bodyLength {
		f.step = bodyNone
	} else if f.left == 0 {
		f.step = chunkEnd
	}
	return k
}

// char takes one byte of a line between the chunks.
func (f *bodyFramer) char(c byte) error {
	if f.line++; f.line > maxChunkLine {
		return fmt.Errorf("%w: a line of a chunked body is longer than %d bytes", ErrFraming, maxChunkLine)
	}
	if c == '\n' {
		return f.lineEnd()
	}
	switch f.step {
	case chunkSize:
		return f.digit(c)
	case chunkEnd:
		if c != '\r' {
			return fmt.Errorf("%w: a chunk longer than it said", ErrFraming)
		}
	case chunkTrailer:
		if c == '\r' {
			f.line-- // so that an empty line is one of length 1
		}
	}
	return nil
}

func (f *bodyFramer) digit(c byte) error {
	v, ok := hexDigit(c)
	if !ok {
		if f.line == 1 {
			return fmt.Errorf("%w: a chunk without a size", ErrFraming)
		}
		f.step = chunkExtension
		return nil
	}
	if f.left > math.MaxInt64>>5 {
		return fmt.Errorf("%w: a chunk larger than any", ErrFraming)
	}
	f.left = f.left<<4 | int64(v)
	return nil
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10, true
	}
	return 0, false
}

// lineEnd goes on after a line feed.
func (f *bodyFramer) lineEnd() error {
	empty := f.line == 1
	f.line = 0
	switch f.step {
	case chunkSize, chunkExtension:
		if empty {
			return fmt.Errorf("%w: a chunk without a size", ErrFraming)
		}
		f.step = chunkData
		if f.left == 0 {
			f.step = chunkTrailer
		}
	case chunkEnd:
		f.step = chunkSize
	case chunkTrailer:
		if empty {
			f.step = bodyNone
		}
	}
	return nil
}

// body returns the framing of a message with this head.
func (h *head) body() bodyFramer {
	switch {
	case h.chunked:
		return bodyFramer{step: chunkSize}
	case h.length > 0:
		return bodyFramer{step: bodyLength, left: h.length}
	}
	return bodyFramer{}
}

// responseBody is body for an answer to a request with method HEAD or not.
func (h *head) responseBody(toHead bool) bodyFramer {
	switch {
	case toHead, h.status == 204, h.status == 304, h.status < 200:
		return bodyFramer{}
	case !h.chunked && h.length < 0:
		return bodyFramer{step: bodyEndless}
	}
	return h.body()
}
