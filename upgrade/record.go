package upgrade

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

// record is what travels beside a connection's descriptor.
type record struct {
	listener, protocol      string
	opening                 []byte // what the client said at the start, as it is to be replayed
	extensions, subprotocol string // of the first answer, of a WebSocket
	answer                  []byte // the first answer's start, of MQTT
	kept                    []byte // read from the client, not finished
	unsent                  []byte // written by the app, not sent
	stateVersion            uint32
	state                   []byte
	idle                    time.Duration  // how much longer an idle HTTP connection may be; 0: as long as it likes
	local, remote           netip.AddrPort // of TCP; they save asking the kernel
}

// recordVersion is the first byte of a record. A reader that does not know it refuses the connection.
const recordVersion = 1

// The fields of a record: a tag, a length, the bytes. Who does not know an odd tag may skip it.
const (
	tagListener     = 2
	tagProtocol     = 4
	tagOpening      = 6
	tagExtensions   = 8
	tagSubprotocol  = 10
	tagAnswer       = 12
	tagKept         = 14
	tagUnsent       = 16
	tagStateVersion = 18
	tagState        = 20
	tagIdle         = 21 // milliseconds
	tagLocal        = 23 // port, address, zone
	tagRemote       = 25
)

// limits of a record's fields. Kept may be more than MaxKept by what one Read brought; unsent by what one Write did.
var limits = [...]uint64{
	tagListener: 256, tagProtocol: 256, tagOpening: 2 * MaxOpening, tagExtensions: MaxOpening, tagSubprotocol: MaxOpening, tagAnswer: 16,
	tagKept: 64 << 20, tagUnsent: 64 << 20, tagStateVersion: binary.MaxVarintLen32, tagState: MaxState,
	tagIdle: binary.MaxVarintLen64, tagLocal: maxAddress, tagRemote: maxAddress,
}

const maxAddress = 64

// ErrRecord is what is wrong with a record that is damaged, or from an SDK of another time.
var ErrRecord = errors.New("connection record cannot be read")

// size is how many bytes append adds at most.
func (r *record) size() int {
	return 256 + len(r.listener) + len(r.protocol) + len(r.opening) + len(r.extensions) + len(r.subprotocol) + len(r.answer) +
		len(r.kept) + len(r.unsent) + len(r.state)
}

// append encodes r behind b.
func (r *record) append(b []byte) []byte {
	b = append(slices.Grow(b, r.size()), recordVersion)
	b = appendField(b, tagListener, r.listener)
	b = appendField(b, tagProtocol, r.protocol)
	b = appendField(b, tagOpening, r.opening)
	b = appendField(b, tagExtensions, r.extensions)
	b = appendField(b, tagSubprotocol, r.subprotocol)
	b = appendField(b, tagAnswer, r.answer)
	b = appendField(b, tagKept, r.kept)
	b = appendField(b, tagUnsent, r.unsent)
	if r.stateVersion != 0 {
		b = appendNumber(b, tagStateVersion, uint64(r.stateVersion))
	}
	b = appendField(b, tagState, r.state)
	if r.idle > 0 {
		b = appendNumber(b, tagIdle, uint64(r.idle.Milliseconds()))
	}
	b = appendAddress(b, tagLocal, r.local)
	return appendAddress(b, tagRemote, r.remote)
}

func appendNumber(b []byte, tag, v uint64) []byte {
	var room [binary.MaxVarintLen64]byte
	return appendField(b, tag, binary.AppendUvarint(room[:0], v))
}

func appendAddress(b []byte, tag uint64, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return b
	}
	var room [maxAddress]byte
	value := binary.BigEndian.AppendUint16(room[:0], a.Port())
	if value = append(value, a.Addr().AsSlice()...); a.Addr().Is6() {
		value = append(value, a.Addr().Zone()...)
	}
	return appendField(b, tag, value)
}

func parseAddress(b []byte) (netip.AddrPort, error) {
	size := net.IPv6len
	if len(b) == 2+net.IPv4len {
		size = net.IPv4len
	}
	if len(b) < 2+size {
		return netip.AddrPort{}, fmt.Errorf("%w: an address in %d bytes", ErrRecord, len(b))
	}
	a, _ := netip.AddrFromSlice(b[2 : 2+size])
	if zone := b[2+size:]; len(zone) > 0 {
		a = a.WithZone(string(zone))
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(b)), nil
}

func appendField[T string | []byte](b []byte, tag uint64, value T) []byte {
	if len(value) == 0 {
		return b
	}
	b = binary.AppendUvarint(b, tag)
	b = binary.AppendUvarint(b, uint64(len(value)))
	return append(b, value...)
}

// parseRecord decodes all of b; the record refers to it.
func parseRecord(b []byte) (*record, error) {
	r := &record{}
	if err := new(recordParser).parse(r, b); err != nil {
		return nil, err
	}
	return r, nil
}

// recordParser reads the records of one handoff. Most of them have names in common.
type recordParser struct{ names map[string]string }

func (p *recordParser) parse(r *record, b []byte) error {
	if len(b) == 0 || b[0] != recordVersion {
		return fmt.Errorf("%w: not version %d", ErrRecord, recordVersion)
	}
	last := uint64(0)
	for b = b[1:]; len(b) > 0; {
		tag, value, rest, err := cutField(b)
		if err != nil {
			return err
		}
		if tag <= last {
			return fmt.Errorf("%w: field %d after field %d", ErrRecord, tag, last)
		}
		if err := p.set(r, tag, value); err != nil {
			return err
		}
		b, last = rest, tag
	}
	return nil
}

// maxNames bounds what is remembered.
const maxNames = 64

// text is b as a string, the same one each time.
func (p *recordParser) text(b []byte) string {
	if s, ok := p.names[string(b)]; ok {
		return s
	}
	s := string(b)
	if p.names == nil {
		p.names = map[string]string{}
	}
	if len(p.names) < maxNames {
		p.names[s] = s
	}
	return s
}

// own copies what b was needed for: the memory of an OFFER is used again.
func (r *record) own() {
	for _, field := range []*[]byte{&r.opening, &r.answer, &r.kept, &r.unsent, &r.state} {
		if len(*field) > 0 {
			*field = append(make([]byte, 0, len(*field)), *field...)
		}
	}
}

func cutField(b []byte) (tag uint64, value, rest []byte, err error) {
	tag, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, nil, fmt.Errorf("%w: a field without a tag", ErrRecord)
	}
	size, m := binary.Uvarint(b[n:])
	if m <= 0 || size > uint64(len(b)-n-m) {
		return 0, nil, nil, fmt.Errorf("%w: field %d is cut short", ErrRecord, tag)
	}
	if tag < uint64(len(limits)) && limits[tag] > 0 && size > limits[tag] {
		return 0, nil, nil, fmt.Errorf("%w: field %d has %d bytes, more than %d", ErrRecord, tag, size, limits[tag])
	}
	value, rest = b[n+m:n+m+int(size)], b[n+m+int(size):]
	return tag, value, rest, nil
}

func (p *recordParser) set(r *record, tag uint64, value []byte) (err error) {
	switch tag {
	case tagListener:
		r.listener = p.text(value)
	case tagProtocol:
		r.protocol = p.text(value)
	case tagOpening:
		r.opening = value
	case tagExtensions:
		r.extensions = p.text(value)
	case tagSubprotocol:
		r.subprotocol = p.text(value)
	case tagAnswer:
		r.answer = value
	case tagKept:
		r.kept = value
	case tagUnsent:
		r.unsent = value
	case tagStateVersion:
		v, err := number(value, 1<<32-1)
		r.stateVersion = uint32(v)
		return err
	case tagIdle:
		v, err := number(value, 1<<40)
		r.idle = time.Duration(v) * time.Millisecond
		return err
	case tagState:
		r.state = value
	case tagLocal:
		r.local, err = parseAddress(value)
	case tagRemote:
		r.remote, err = parseAddress(value)
	default:
		if tag%2 == 0 {
			return fmt.Errorf("%w: field %d is unknown", ErrRecord, tag)
		}
	}
	return err
}

func number(b []byte, limit uint64) (uint64, error) {
	v, n := binary.Uvarint(b)
	if n != len(b) || v > limit {
		return 0, fmt.Errorf("%w: a number in %d bytes", ErrRecord, len(b))
	}
	return v, nil
}
