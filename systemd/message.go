package systemd

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	// maxMessage is the size that systemd itself allows.
	maxMessage = 4096
	// maxStatus keeps a status text to what fits on a few lines of a terminal.
	maxStatus = 1024
	maxErrno  = 4095
)

// Message is one datagram of the sd_notify protocol. A field that was not in
// it has its zero value.
type Message struct {
	Ready     bool          // READY=1
	Reloading bool          // RELOADING=1
	Stopping  bool          // STOPPING=1
	Watchdog  bool          // WATCHDOG=1: the sign of life
	Trigger   bool          // WATCHDOG=trigger: the app calls itself hung
	Status    string        // STATUS=, one printable line
	Extend    time.Duration // EXTEND_TIMEOUT_USEC=
	MainPID   int           // MAINPID=
	Errno     int           // ERRNO=
}

// ParseMessage reads one datagram. Keys that it does not know are ignored, as
// the protocol demands; of a key that is there twice the first counts, as in
// systemd. Everything else that is odd is an ErrMalformed.
func ParseMessage(data []byte) (Message, error) {
	fields, err := splitMessage(data)
	if err != nil {
		return Message{}, err
	}
	m := Message{
		Ready:     fields["READY"] == "1",
		Reloading: fields["RELOADING"] == "1",
		Stopping:  fields["STOPPING"] == "1",
		Watchdog:  fields["WATCHDOG"] == "1",
		Trigger:   fields["WATCHDOG"] == "trigger",
		Status:    clip(printable(fields["STATUS"]), maxStatus),
	}
	if m.Extend, err = microseconds(fields, "EXTEND_TIMEOUT_USEC"); err != nil {
		return Message{}, err
	}
	if m.MainPID, err = number(fields, "MAINPID", 1, math.MaxInt32); err != nil {
		return Message{}, err
	}
	if m.Errno, err = number(fields, "ERRNO", 0, maxErrno); err != nil {
		return Message{}, err
	}
	return m, nil
}

func splitMessage(data []byte) (map[string]string, error) {
	if len(data) > maxMessage {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrMalformed, maxMessage)
	}
	data = bytes.TrimSuffix(data, []byte{0}) // C programs may count the end of their string
	if bytes.IndexByte(data, 0) >= 0 {
		return nil, fmt.Errorf("%w: zero byte inside", ErrMalformed)
	}
	fields := make(map[string]string)
	for line := range strings.SplitSeq(string(data), "\n") {
		if line == "" {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("%w: line %q is not KEY=value", ErrMalformed, clip(line, 64))
		}
		if _, twice := fields[key]; !twice {
			fields[key] = value
		}
	}
	if len(fields) == 0 {
		return nil, fmt.Errorf("%w: empty", ErrMalformed)
	}
	return fields, nil
}

func number(fields map[string]string, key string, least, most int) (int, error) {
	text, ok := fields[key]
	if !ok {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("%w: %s=%q is not a number from %d to %d", ErrMalformed, key, clip(text, 64), least, most)
	}
	return n, nil
}

// microseconds caps what a Duration cannot hold: "forever" is said as the
// largest number there is. How much is granted is the receiver's decision.
func microseconds(fields map[string]string, key string) (time.Duration, error) {
	text, ok := fields[key]
	if !ok {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: %s=%q is not a number of microseconds", ErrMalformed, key, clip(text, 64))
	}
	const most = math.MaxInt64 / uint64(time.Microsecond)
	return time.Duration(min(n, most)) * time.Microsecond, nil
}

// printable makes a text from outside fit for a terminal: one line, no
// control or escape sequences, valid UTF-8.
func printable(text string) string {
	clean := strings.Map(func(r rune) rune {
		switch {
		case r == utf8.RuneError:
			return '?'
		case unicode.IsPrint(r):
			return r
		default:
			return ' '
		}
	}, text)
	return strings.TrimSpace(clean)
}

// clip cuts text to at most n bytes without cutting a character in two.
func clip(text string, n int) string {
	if len(text) <= n {
		return text
	}
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}
