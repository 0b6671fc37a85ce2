package control

import (
	"errors"
	"testing"
)

// FuzzMessage: a packet is a message or ErrMessage, whatever is in it.
func FuzzMessage(f *testing.F) {
	f.Add([]byte(`{"v":1,"type":"hello","protocols":[1],"listeners":[{"name":"web","protocol":"http"}]}`), 0)
	f.Add([]byte(`{"type":"given","kept":{"busy":1}}`), 0x20)
	f.Fuzz(func(t *testing.T, packet []byte, flags int) {
		if _, file, err := decode(packet, nil, flags); file != nil || err != nil && !errors.Is(err, ErrMessage) {
			t.Errorf("file %v, %v", file, err)
		}
	})
}
