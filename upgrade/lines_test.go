package upgrade

import (
	"bufio"
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"
)

// lineFramer follows lines without holding them: what a plain protocol is.
type lineFramer struct{}

func (lineFramer) Next(b []byte) (int, bool, error) {
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		return i + 1, true, nil
	}
	return len(b), false, nil
}

func partLines() Protocol { return Framed("lines", func() Framer { return lineFramer{} }) }

// A Scanner takes what it has for the last line when a Read fails, whatever the error.
func TestLines_StartOfALineIsNeverTakenForALine(t *testing.T) {
	l := newTestListener(t, Lines())
	client, c := pair(t, l)
	got := make(chan []string, 1)
	go func() {
		var lines []string
		for s := bufio.NewScanner(c); s.Scan(); {
			lines = append(lines, s.Text())
			io.WriteString(c, "ok\n")
		}
		c.Close()
		got <- lines
	}()
	say(t, client, "one\ntw")
	expect(t, client, "ok\n")
	r := mustSeal(t, c)
	if lines := <-got; !slices.Equal(lines, []string{"one"}) || string(r.kept) != "tw" {
		t.Errorf("the app got %q, %q moves", lines, r.kept)
	}
}

func TestLines_LastLineWithoutAnEnd_IsDelivered(t *testing.T) {
	client, c := pair(t, newTestListener(t, Lines()))
	say(t, client, "one\ntwo")
	client.CloseWrite()
	expect(t, c, "one\ntwo")
}

func TestLines_LongerThanWeKeep_ComesInPieces(t *testing.T) {
	client, c := pair(t, newTestListener(t, Lines()))
	long := strings.Repeat("x", 2*MaxKept) + "\n"
	go io.WriteString(client, long+"short\n")
	expect(t, c, long)
	if r := mustSeal(t, c); string(r.kept) != "" && string(r.kept) != "short\n" {
		t.Errorf("%d bytes move", len(r.kept))
	}
}

func TestLines_TLS_Stays(t *testing.T) {
	client, c := pair(t, newTestListener(t, Lines()))
	say(t, client, "\x16\x03\x01\x02\x00")
	expect(t, c, "\x16\x03\x01\x02\x00")
	if _, why := c.begin().seal(within(t)); why != ReasonTLS {
		t.Errorf("stays for the reason %q", why)
	}
}
