package upgrade

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestListen_BadAddresses_SayWhatAndWhich(t *testing.T) {
	u := &Upgrader{opt: Options{}.withDefaults(), inherited: &inheritance{}}
	taken, err := u.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, tc := range []struct{ network, address, says string }{
		{"tcp", "nonsense", "missing port"},
		{"tcp", "127.0.0.1:http!", "unknown port"},
		{"tcp", "127.0.0.1:99999", "invalid port"},
		{"tcp", "192.0.2.1:80", "cannot assign requested address"},
		{"tcp", taken.Addr().String(), "address already in use"},
		{"udp", "127.0.0.1:0", "udp"},
		{"unix", filepath.Join(t.TempDir(), "no", "such", "folder"), "no such file"},
		{"unix", "/" + strings.Repeat("long", 50), "invalid argument"},
		{"carrier pigeon", "x", "unknown network"},
		{"", "", "unknown network"},
	} {
		l, err := u.Listen(tc.network, tc.address)
		if err == nil {
			l.Close()
			t.Errorf("%s %q: no error", tc.network, tc.address)
			continue
		}
		if text := err.Error(); !strings.Contains(text, tc.says) || !strings.Contains(text, tc.network) || !strings.Contains(text, tc.address) {
			t.Errorf("%s %q: %v", tc.network, tc.address, err)
		}
	}
	for _, tc := range []struct{ network, address, says string }{
		{"tcp", "127.0.0.1:0", "tcp"},
		{"udp", "nonsense", "missing port"},
	} {
		p, err := u.ListenPacket(tc.network, tc.address)
		if err == nil {
			p.Close()
			t.Errorf("%s %q: no error", tc.network, tc.address)
		} else if text := err.Error(); !strings.Contains(text, tc.says) || !strings.Contains(text, tc.address) {
			t.Errorf("%s %q: %v", tc.network, tc.address, err)
		}
	}
}

// Two listeners that were asked for in the same words are not the same.
func TestListen_SameAddressTwice_IsToldApart(t *testing.T) {
	u := &Upgrader{opt: Options{}.withDefaults(), inherited: &inheritance{}}
	for _, opts := range [][]ListenOption{nil, nil, {Named("web")}, {Named("web")}} {
		l, err := u.Listen("tcp", "127.0.0.1:0", opts...)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	var names []string
	for _, l := range u.listeners {
		names = append(names, l.name)
	}
	if got := strings.Join(names, " "); got != "tcp:127.0.0.1:0 tcp:127.0.0.1:0#2 web web#2" {
		t.Errorf("names: %s", got)
	}
	if n := len(u.hello().Listeners); n != 4 {
		t.Errorf("the other release hears of %d listeners", n)
	}
}

// What tableflip hands on has a key of its own, too: the same for the same words in the same order.
func TestStandalone_SameAddressTwice_IsToldApart(t *testing.T) {
	for range 2 { // processes
		s := &standalone{used: map[string]int{}}
		got := []string{s.key("tcp", ":0"), s.key("udp", ":0"), s.key("tcp", ":0"), s.key("tcp", ":80"), s.key("tcp", ":0")}
		if want := ":0 :0 :0#2 :80 :0#3"; strings.Join(got, " ") != want {
			t.Errorf("%q, not %s", got, want)
		}
	}
}
