package upgrade

import (
	"encoding/binary"
	"errors"
	"fmt"
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
	idle                    time.Duration // how much longer an idle HTTP connection may be; 0: as long as it likes
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
)

// limits of a record's fields. Kept may be more than MaxKept by what one Read brought; unsent by what one Write did.
var limits = map[uint64]uint64{
	tagListener: 256, tagProtocol: 256, tagOpening: 2 * MaxOpening, tagExtensions: MaxOpening, tagSubprotocol: MaxOpening, tagAnswer: 16,
	tagKept: 64 << 20, tagUnsent: 64 << 20, tagStateVersion: binary.MaxVarintLen32, tagState: MaxState,
	tagIdle: binary.MaxVarintLen64,
}

// ErrRecord is what is wrong with a record that is damaged, or from an SDK of another time.
var ErrRecord = errors.New("connection record cannot be read")

// size is how many bytes append adds at most.
func (r *record) size() int {
	return 160 + len(r.listener) + len(r.protocol) + len(r.opening) + len(r.extensions) + len(r.subprotocol) + len(r.answer) +
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
		b = appendField(b, tagStateVersion, binary.AppendUvarint(nil, uint64(r.stateVersion)))
	}
	b = appendField(b, tagState, r.state)
	if r.idle > 0 {
		b = appendField(b, tagIdle, binary.AppendUvarint(nil, uint64(r.idle.Milliseconds())))
	}
	return b
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
	if len(b) == 0 || b[0] != recordVersion {
		return nil, fmt.Errorf("%w: not version %d", ErrRecord, recordVersion)
	}
	r := &record{}
	last := uint64(0)
	for b = b[1:]; len(b) > 0; {
		tag, value, rest, err := cutField(b)
		if err != nil {
			return nil, err
		}
		if tag <= last {
			return nil, fmt.Errorf("%w: field %d after field %d", ErrRecord, tag, last)
		}
		if err := r.set(tag, value); err != nil {
			return nil, err
		}
		b, last = rest, tag
	}
	return r, nil
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
	if limit, known := limits[tag]; known && size > limit {
		return 0, nil, nil, fmt.Errorf("%w: field %d has %d bytes, more than %d", ErrRecord, tag, size, limit)
	}
	value, rest = b[n+m:n+m+int(size)], b[n+m+int(size):]
	return tag, value, rest, nil
}

func (r *record) set(tag uint64, value []byte) error {
	switch tag {
	case tagListener:
		r.listener = string(value)
	case tagProtocol:
		r.protocol = string(value)
	case tagOpening:
		r.opening = value
	case tagExtensions:
		r.extensions = string(value)
	case tagSubprotocol:
		r.subprotocol = string(value)
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
	default:
		if tag%2 == 0 {
			return fmt.Errorf("%w: field %d is unknown", ErrRecord, tag)
		}
	}
	return nil
}

func number(b []byte, limit uint64) (uint64, error) {
	v, n := binary.Uvarint(b)
	if n != len(b) || v > limit {
		return 0, fmt.Errorf("%w: a number in %d bytes", ErrRecord, len(b))
	}
	return v, nil
}
