package upgrade

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// requestEnds follows requests as a connection does: what is held is shown again with more. It answers each of them.
func requestEnds(data []byte, rng *rand.Rand) (list []int, err error) {
	c := &httpCodec{}
	at := 0
	for have := 0; have < len(data); {
		have += 1 + rng.IntN(min(len(data)-have, 1+rng.IntN(40)))
		for at < have {
			n, end, err := c.in(data[at:have])
			if err != nil {
				return list, err
			}
			if n == 0 && !end {
				break
			}
			at += n
			if end {
				list = append(list, at)
				c.out([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), false)
			}
		}
	}
	return list, nil
}

// slowRequests lets net/http read the requests, and counts.
func slowRequests(data []byte) (list []int, err error) {
	src := bytes.NewReader(data)
	for {
		// One byte of buffer would do; bufio's least is 16, so what it has read too much is given back.
		b := bufio.NewReaderSize(src, 16)
		r, err := http.ReadRequest(b)
		if err != nil {
			return list, err
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return list, err
		}
		src.Seek(-int64(b.Buffered()), io.SeekCurrent)
		list = append(list, len(data)-src.Len())
		if r.Method == "CONNECT" || r.Method == "PRI" {
			return list, errors.New("not for us")
		}
	}
}

var requests = []string{
	"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: a\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nTrailer: x\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
	"HEAD / HTTP/1.0\r\n\r\nPUT / HTTP/1.1\r\nHost: a\r\ncontent-length: 0\r\n\r\n",
}

// FuzzHTTP: wherever both net/http and we find the data in order, messages end at the same places. (What one of the two refuses ends the
// connection, or its moving.)
func FuzzHTTP(f *testing.F) {
	for i, r := range requests {
		f.Add([]byte(r), uint64(i))
	}
	f.Add([]byte("A * HTTP/1.0\nTransfer-Encoding: chunked\n\n7\r\n"), uint64(0)) // net/http knows no such body
	f.Fuzz(func(t *testing.T, data []byte, seed uint64) {
		if len(data) > 4000 || bytes.Contains(bytes.ToLower(data), []byte("upgrade")) {
			t.Skip()
		}
		got, ourErr := requestEnds(data, rand.New(rand.NewPCG(seed, 0)))
		want, theirErr := slowRequests(data)
		n := min(len(got), len(want))
		if !slices.Equal(got[:n], want[:n]) {
			t.Fatalf("requests end at %v, net/http says %v", got, want)
		}
		if ourErr == nil && len(got) < len(want) {
			t.Fatalf("requests end at %v and no error, net/http says %v (%v)", got, want, theirErr)
		}
	})
}

func TestHTTP_Requests(t *testing.T) {
	for _, r := range requests {
		got, err := requestEnds([]byte(r), rand.New(rand.NewPCG(1, 2)))
		want, _ := slowRequests([]byte(r))
		if err != nil || !slices.Equal(got, want) || len(got) != 2 {
			t.Errorf("%q: requests end at %v, want %v, %v", r, got, want, err)
		}
	}
}

// TestHTTP_Answers: when a connection is idle again.
func TestHTTP_Answers(t *testing.T) {
	for _, x := range []struct {
		name, request, answer string
		stays                 Reason
		busy                  bool
	}{
		{"length", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "", false},
		{"length, half", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no", "", true},
		{"chunks", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "", false},
		{"chunks, no end", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n", "", true},
		{"head", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", "", false},
		{"no content", "GET", "HTTP/1.1 204 No Content\r\n\r\n", "", false},
		{"interim", "GET", "HTTP/1.1 100 Continue\r\n\r\n", "", true},
		{"interim, then final", "GET", "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", "", false},
		{"close", "GET", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", ReasonClosing, false},
		{"until the end", "GET", "HTTP/1.1 200 OK\r\n\r\n", ReasonClosing, true},
		{"another protocol", "GET", "HTTP/1.1 101 Switching\r\nUpgrade: foo\r\n\r\n", ReasonUnknown, true},
		{"two answers", "GET", "HTTP/1.1 204 A\r\n\r\nHTTP/1.1 204 B\r\n\r\n", ReasonUnknown, false},
	} {
		t.Run(x.name, func(t *testing.T) {
			for cut := range len(x.answer) {
				c := &httpCodec{}
				c.in([]byte(x.request + " / HTTP/1.1\r\nHost: a\r\n\r\n"))
				c.out([]byte(x.answer[:cut]), false)
				c.out([]byte(x.answer[cut:]), false)
				if c.stays() != x.stays || x.stays == "" && c.busy(100) != x.busy {
					t.Fatalf("cut at %d: stays %q, busy %v", cut, c.stays(), c.busy(100))
				}
			}
		})
	}
}

func TestEditOffer(t *testing.T) {
	for _, x := range []struct{ in, want string }{
		{"permessage-deflate", "permessage-deflate; server_no_context_takeover; client_no_context_takeover"},
		{"permessage-deflate; client_max_window_bits", "permessage-deflate; client_max_window_bits; server_no_context_takeover; client_no_context_takeover"},
		{"foo, permessage-deflate; client_no_context_takeover", "foo, permessage-deflate; client_no_context_takeover; server_no_context_takeover"},
	} {
		head := "GET /a:b HTTP/1.1\r\nSec-websocket-Extensions: " + x.in + "\r\nHost: a\r\n\r\n"
		want := "GET /a:b HTTP/1.1\r\nSec-websocket-Extensions: " + x.want + "\r\nHost: a\r\n\r\n"
		if got := string(editOffer([]byte(head))); got != want {
			t.Errorf("%q became %q", head, got)
		}
	}
	if got := editOffer([]byte("GET / HTTP/1.1\r\nSec-WebSocket-Extensions: foo\r\n\r\n")); got != nil {
		t.Errorf("an offer without compression became %q", got)
	}
}

// FuzzHandshake: whatever was offered and answered, the replayed request is one that net/http reads, offers what was agreed and nothing else,
// and editing what was edited changes nothing.
func FuzzHandshake(f *testing.F) {
	f.Add("permessage-deflate; client_max_window_bits", "permessage-deflate; client_no_context_takeover", "chat, superchat", "chat")
	f.Add("", "", "", "")
	f.Fuzz(func(t *testing.T, offer, answer, protocols, protocol string) {
		for _, s := range []string{offer, answer, protocols, protocol} {
			if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Skip()
			}
		}
		request := "GET / HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Extensions: " + offer + "\r\nSec-WebSocket-Protocol: " + protocols + "\r\nX: y\r\n\r\n"
		if edited := editOffer([]byte(request)); edited != nil {
			if again := editOffer(edited); !bytes.Equal(again, edited) {
				t.Errorf("edited %q, again %q", edited, again)
			}
		}
		reply := []byte("HTTP/1.1 101 S\r\nSec-WebSocket-Extensions: " + answer + "\r\nSec-WebSocket-Protocol: " + protocol + "\r\n\r\n")
		h := newHandshake([]byte(request), reply)
		if !h.answeredBy(reply) {
			t.Errorf("the answer %q is not its own equal", answer)
		}
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(h.opening)))
		if err != nil {
			t.Fatalf("replayed %q: %v", h.opening, err)
		}
		if got := normalExtensions(r.Header.Get("Sec-WebSocket-Extensions")); got != h.extensions || r.Header.Get("X") != "y" {
			t.Errorf("replayed %q, agreed %q", got, h.extensions)
		}
		if got := r.Header.Get("Sec-WebSocket-Protocol"); got != strings.TrimSpace(protocol) {
			t.Errorf("replayed protocol %q, agreed %q", got, protocol)
		}
	})
}
