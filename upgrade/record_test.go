package upgrade

import (
	"errors"
	"reflect"
	"testing"
	"time"
)

var fullRecord = record{
	listener: "web", protocol: "http", opening: []byte("GET / HTTP/1.1\r\n\r\n"), extensions: "permessage-deflate", subprotocol: "chat",
	answer: []byte{32, 2, 0, 0}, kept: []byte("half"), unsent: []byte("tail"), stateVersion: 7, state: []byte("state"), idle: 5 * time.Second,
}

func TestRecord_ComesBackAsItWas(t *testing.T) {
	for _, want := range []record{fullRecord, {}} {
		got, err := parseRecord(want.append(nil))
		if err != nil || !reflect.DeepEqual(*got, want) {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
}

func TestRecord_UnknownFields(t *testing.T) {
	b := fullRecord.append(nil)
	if _, err := parseRecord(append(b, 101, 1, 'x')); err != nil {
		t.Errorf("an odd field that is not known: %v", err)
	}
	if _, err := parseRecord(append(b, 102, 1, 'x')); !errors.Is(err, ErrRecord) {
		t.Errorf("an even field that is not known: %v", err)
	}
}

// FuzzRecord: no bytes panic, and what can be read can be written and read again.
func FuzzRecord(f *testing.F) {
	f.Add(fullRecord.append(nil))
	f.Add([]byte{1, 20, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(b)
		if err != nil {
			if !errors.Is(err, ErrRecord) {
				t.Fatalf("error without its sentinel: %v", err)
			}
			return
		}
		again, err := parseRecord(r.append(nil))
		if err != nil || r.size() < len(r.append(nil)) {
			t.Fatalf("%+v: %v", r, err)
		}
		if string(again.append(nil)) != string(r.append(nil)) {
			t.Fatalf("%+v became %+v", r, again)
		}
	})
}
