package systemd

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestParseMessage(t *testing.T) {
	for _, c := range []struct {
		name string
		data string
		want Message
	}{
		{"ready", "READY=1", Message{Ready: true}},
		{"ready with a trailing newline", "READY=1\n", Message{Ready: true}},
		{"ready with the end of a C string", "READY=1\x00", Message{Ready: true}},
		{"several at once", "READY=1\nSTATUS=serving\nMAINPID=42", Message{Ready: true, Status: "serving", MainPID: 42}},
		{"not ready", "READY=0", Message{}},
		{"stopping", "STOPPING=1\nERRNO=13", Message{Stopping: true, Errno: 13}},
		{"reloading", "RELOADING=1\nMONOTONIC_USEC=17\n", Message{Reloading: true}},
		{"sign of life", "WATCHDOG=1", Message{Watchdog: true}},
		{"hung by its own account", "WATCHDOG=trigger", Message{Trigger: true}},
		{"more time", "EXTEND_TIMEOUT_USEC=1500000", Message{Extend: 1500 * time.Millisecond}},
		{"all the time there is", "EXTEND_TIMEOUT_USEC=18446744073709551615", Message{Extend: math.MaxInt64 / 1000 * time.Microsecond}},
		{"unknown keys", "X_OURS=1\nFDSTORE=1\nREADY=1\nBARRIER=1", Message{Ready: true}},
		{"the first of two counts", "STATUS=first\nSTATUS=second", Message{Status: "first"}},
		{"an equals sign in the value", "STATUS=a=b", Message{Status: "a=b"}},
		{"terminal escapes in the status", "STATUS=\x1b[31mred\x07", Message{Status: "[31mred"}},
		{"a status in some other encoding", "STATUS=gr\xfcn", Message{Status: "gr?n"}},
		{"a long status", "STATUS=" + strings.Repeat("ä", 600), Message{Status: strings.Repeat("ä", 512)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParseMessage([]byte(c.data))
			if err != nil || got != c.want {
				t.Errorf("ParseMessage(%q) = %+v, %v; want %+v", c.data, got, err, c.want)
			}
		})
	}
}

func TestParseMessage_Malformed(t *testing.T) {
	for name, data := range map[string]string{
		"nothing":              "",
		"nothing but newlines": "\n\n",
		"no equals sign":       "READY=1\nREADY",
		"no key":               "=1",
		"zero byte inside":     "READY=1\x00STATUS=x",
		"too large":            "STATUS=" + strings.Repeat("x", maxMessage),
		"pid is a word":        "MAINPID=init",
		"pid is zero":          "MAINPID=0",
		"pid is huge":          "MAINPID=4294967296",
		"pid is negative":      "MAINPID=-1",
		"errno is negative":    "ERRNO=-5",
		"errno is huge":        "ERRNO=4096",
		"time is negative":     "EXTEND_TIMEOUT_USEC=-1",
		"time is a word":       "EXTEND_TIMEOUT_USEC=infinity",
		"time is too large":    "EXTEND_TIMEOUT_USEC=18446744073709551616",
	} {
		t.Run(name, func(t *testing.T) {
			if m, err := ParseMessage([]byte(data)); !errors.Is(err, ErrMalformed) || m != (Message{}) {
				t.Errorf("ParseMessage(%.40q) = %+v, %v; want ErrMalformed and nothing", data, m, err)
			}
		})
	}
}

func FuzzParseMessage(f *testing.F) {
	for _, s := range []string{
		"READY=1", "STATUS=\x1b[31m\xff\nMAINPID=1", "EXTEND_TIMEOUT_USEC=18446744073709551615",
		"WATCHDOG=trigger\x00", "=", "\n", "ERRNO=4095\nERRNO=x",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseMessage(data)
		if err != nil {
			if !errors.Is(err, ErrMalformed) || m != (Message{}) {
				t.Fatalf("%+v, %v: an error without ErrMalformed, or with a message", m, err)
			}
			return
		}
		if len(data) > maxMessage || len(m.Status) > maxStatus {
			t.Fatalf("%d bytes with a status of %d accepted", len(data), len(m.Status))
		}
		if !utf8.ValidString(m.Status) || strings.ContainsFunc(m.Status, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Fatalf("status %q is not fit for a terminal", m.Status)
		}
		if m.Extend < 0 || m.MainPID < 0 || m.Errno < 0 {
			t.Fatalf("negative number in %+v", m)
		}
	})
}
