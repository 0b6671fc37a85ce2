package upgrade

import "fmt"

// Control packet types of MQTT, 3.1.1 and 5 alike.
const (
	mqttConnect    = 1
	mqttConnack    = 2
	mqttDisconnect = 14
	mqttAuth       = 15
)

// mqttFramer follows MQTT control packets: a type, a length of one to four bytes, the rest.
type mqttFramer struct {
	first byte // of the packet under way
	have  uint8
	sized bool
	left  uint32
}

func (f *mqttFramer) Next(b []byte) (n int, end bool, err error) {
	for !f.sized {
		if n == len(b) {
			return n, false, nil
		}
		if err := f.header(b[n]); err != nil {
			return n, false, err
		}
		n++
	}
	if rest := len(b) - n; uint64(rest) < uint64(f.left) {
		f.left -= uint32(rest)
		return len(b), false, nil
	}
	n += int(f.left)
	f.have, f.sized, f.left = 0, false, 0
	return n, true, nil
}

// header takes one byte of the fixed header.
func (f *mqttFramer) header(c byte) error {
	f.have++
	if f.have == 1 {
		f.first = c
		if f.kind() == 0 {
			return fmt.Errorf("%w: an MQTT packet of type 0", ErrFraming)
		}
		return nil
	}
	f.left |= uint32(c&0x7f) << (7 * (f.have - 2))
	f.sized = c&0x80 == 0
	if !f.sized && f.have == 5 {
		return fmt.Errorf("%w: an MQTT length of more than four bytes", ErrFraming)
	}
	return nil
}

// kind is the type of the packet under way, or of the last one at a boundary.
func (f *mqttFramer) kind() byte { return f.first >> 4 }

func (f *mqttFramer) atPacket() bool { return f.have == 0 }

// Missing implements Sized.
func (f *mqttFramer) Missing() int64 {
	if !f.sized {
		return 1
	}
	return int64(f.left)
}
