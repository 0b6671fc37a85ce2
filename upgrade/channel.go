package upgrade

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// channel is one end of the handoff channel (PROTOCOL.md, 2). Frames are sent by any goroutine and read by one.
type channel struct {
	sock    *net.UnixConn
	writing sync.Mutex // held while a frame is written, which may block
}

// newChannel takes f over.
func newChannel(f *os.File) (*channel, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("handoff channel: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("handoff channel: descriptor is a %T", c)
	}
	return &channel{sock: u}, nil
}

func (ch *channel) close() { ch.sock.Close() }

// frameKind says what a frame is.
type frameKind uint8

const (
	frameHello frameKind = iota + 1
	frameFreeze
	frameThawed
	frameOffer
	frameNak
	frameReceipt
	frameRefused
	frameConfirm
	frameWithdraw
	frameEnd
	frameOwned
)

const (
	headerSize  = 16
	maxBatch    = 128       // descriptors in a message
	maxUnjudged = 512       // connections offered and without a verdict
	maxOffer    = 256 << 20 // payload of an OFFER
	maxShared   = 64 << 20  // the app's shared state
	maxPayload  = 1 << 20   // of any other frame
	batchBytes  = 4 << 20   // an OFFER is not made longer than this by one more record
)

// The versions that this SDK speaks. A release that may still have to be upgraded, or to take its connections back, must find one of its own here.
var (
	protocols = []int{1, ownedVersion}
	records   = []int{recordVersion}
)

// ownedVersion is the protocol's version since which a taker says OWNED.
const ownedVersion = 2

// frame is a header and what came with it. The payload of an OFFER is read by whoever handles it.
type frame struct {
	kind    frameKind
	count   int
	first   uint32
	length  int
	fds     []int // ours to close
	payload []byte
	cut     bool // descriptors were lost
}

// errProtocol is a frame that makes no sense.
var errProtocol = errors.New("handoff channel: the other side does not speak the protocol")

// send writes one frame whole. An error means that the other side is gone, or, with a deadline, that it does not read.
func (ch *channel) send(kind frameKind, payload []byte) error {
	return ch.sendFull(frame{kind: kind, payload: payload}, nil)
}

func (ch *channel) sendFull(f frame, rights []byte) error {
	b := make([]byte, headerSize, headerSize+len(f.payload))
	b[0] = byte(f.kind)
	binary.BigEndian.PutUint16(b[2:], uint16(f.count))
	binary.BigEndian.PutUint32(b[4:], f.first)
	binary.BigEndian.PutUint32(b[8:], uint32(len(f.payload)))
	ch.writing.Lock()
	defer ch.writing.Unlock()
	ch.sock.SetWriteDeadline(time.Now().Add(writeTime))
	if rights != nil {
		if err := ch.sendRights(b, rights); err != nil {
			return unsentError{err}
		}
		_, err := ch.sock.Write(f.payload)
		return err
	}
	_, err := ch.sock.Write(append(b, f.payload...))
	return err
}

// writeTime is after how long the other side counts as one that does not read.
const writeTime = 2 * time.Second

// unsentError is a frame of which nothing was written.
type unsentError struct{ error }

func (e unsentError) Unwrap() error { return e.error }

// sendRights writes a header with descriptors. Where too many are in flight it waits for the taker to read some.
func (ch *channel) sendRights(b, rights []byte) error {
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 20*time.Millisecond) {
		_, _, err := ch.sock.WriteMsgUnix(b, rights, nil)
		if !errors.Is(err, unix.ETOOMANYREFS) || wait > 15*time.Millisecond {
			return err
		}
		time.Sleep(wait) // nothing tells when
	}
}

// next reads a frame, of an OFFER only the header and the descriptors. io.EOF: the other process is dead.
func (ch *channel) next() (frame, error) {
	f, err := ch.header()
	if err != nil {
		f.closeAll()
		return f, dead(err)
	}
	limit := maxPayload
	switch f.kind {
	case frameOffer:
		limit = maxOffer
	case frameFreeze:
		limit = maxShared + 4
	}
	if f.length > limit || f.kind < frameHello || f.kind > frameOwned || f.count > maxBatch {
		f.closeAll()
		return f, fmt.Errorf("%w: frame %d with %d bytes", errProtocol, f.kind, f.length)
	}
	if f.kind != frameOffer {
		f.closeAll()
		f.payload = make([]byte, f.length)
		if _, err = io.ReadFull(ch.sock, f.payload); err != nil {
			return f, dead(err)
		}
	}
	return f, nil
}

// header reads exactly a header: what is read beyond it would lose the descriptors of the next one.
func (ch *channel) header() (f frame, err error) {
	var b [headerSize]byte
	oob := make([]byte, unix.CmsgSpace(4*maxBatch))
	for have := 0; have < headerSize; {
		n, k, flags, _, err := ch.sock.ReadMsgUnix(b[have:], oob)
		f.fds = append(f.fds, rightsOf(oob[:k])...)
		f.cut = f.cut || flags&unix.MSG_CTRUNC != 0
		if err == nil && n == 0 {
			err = io.EOF
		}
		if err != nil {
			return f, err
		}
		have += n
	}
	f.kind, f.count = frameKind(b[0]), int(binary.BigEndian.Uint16(b[2:]))
	f.first, f.length = binary.BigEndian.Uint32(b[4:]), int(binary.BigEndian.Uint32(b[8:]))
	return f, nil
}

func rightsOf(oob []byte) (fds []int) {
	msgs, _ := unix.ParseSocketControlMessage(oob)
	for i := range msgs {
		list, _ := unix.ParseUnixRights(&msgs[i])
		fds = append(fds, list...)
	}
	return fds
}

func (f *frame) closeAll() {
	for _, fd := range f.fds {
		unix.Close(fd)
	}
	f.fds = nil
}

// dead makes the ways in which the other process can have ended one.
func dead(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		return io.EOF
	}
	return err
}

// hello is what both say first.
type hello struct {
	Protocols []int             `json:"protocols"`
	Records   []int             `json:"records"`
	States    []uint32          `json:"states,omitempty"`
	Mode      string            `json:"mode"`
	Listeners map[string]string `json:"listeners"` // name to protocol
}

// greet exchanges HELLO. The deadline holds for both directions.
func (ch *channel) greet(mine hello, by time.Time) (theirs hello, err error) {
	b, err := json.Marshal(mine)
	if err != nil {
		return theirs, err
	}
	ch.sock.SetReadDeadline(by)
	defer ch.sock.SetReadDeadline(time.Time{})
	if err := ch.send(frameHello, b); err != nil {
		return theirs, dead(err)
	}
	f, err := ch.next()
	if err != nil {
		return theirs, err
	}
	if f.kind == frameEnd {
		return theirs, errVersions
	}
	if f.kind != frameHello {
		return theirs, fmt.Errorf("%w: frame %d instead of HELLO", errProtocol, f.kind)
	}
	if err := json.Unmarshal(f.payload, &theirs); err != nil {
		return theirs, fmt.Errorf("%w: HELLO: %v", errProtocol, err)
	}
	return theirs, nil
}

// errVersions is two SDKs that have no version in common: nothing moves.
var errVersions = errors.New("the two releases' SDKs have no protocol version in common")

// speak returns the highest version that both speak, 0 if there is none, or if the giver's records cannot be read.
func speak(giver, taker hello) (version int) {
	if !slices.Contains(taker.Records, recordVersion) {
		return 0
	}
	for _, v := range giver.Protocols {
		if slices.Contains(taker.Protocols, v) && slices.Contains(protocols, v) {
			version = max(version, v)
		}
	}
	return version
}

// appendNumbers and parseNumbers are the payload of RECEIPT, CONFIRM and WITHDRAW.
func appendNumbers(b []byte, list []uint32) []byte {
	for _, n := range list {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	return b
}

func parseNumbers(b []byte) ([]uint32, error) {
	if len(b)%4 != 0 {
		return nil, fmt.Errorf("%w: numbers of %d bytes", errProtocol, len(b))
	}
	list := make([]uint32, 0, len(b)/4)
	for ; len(b) > 0; b = b[4:] {
		list = append(list, binary.BigEndian.Uint32(b))
	}
	return list, nil
}

func appendRefusal(b []byte, n uint32, why Reason) []byte {
	text := string(why)[:min(len(why), 255)]
	b = binary.BigEndian.AppendUint32(b, n)
	return append(append(b, byte(len(text))), text...)
}

func parseRefusals(b []byte) (map[uint32]Reason, error) {
	list := map[uint32]Reason{}
	for len(b) > 0 {
		if len(b) < 5 || len(b) < 5+int(b[4]) {
			return nil, fmt.Errorf("%w: a refusal is cut short", errProtocol)
		}
		list[binary.BigEndian.Uint32(b)] = Reason(b[5 : 5+int(b[4])])
		b = b[5+int(b[4]):]
	}
	return list, nil
}
