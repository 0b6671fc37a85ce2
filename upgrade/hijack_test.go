package upgrade

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// Who takes a connection over may listen first, also to what looks like the start of another request.
func TestHTTP_HijackedWithoutAnAnswer_MayListenFirst(t *testing.T) {
	l := newTestListener(t, HTTP())
	taken := make(chan bool, 1)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, b, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		taken <- true
		line, err := b.ReadString('\n')
		if err != nil {
			t.Error(err)
		}
		io.WriteString(c, "you said "+line)
	})}
	go server.Serve(l)
	defer server.Close()
	for _, early := range []bool{true, false} { // what it says is there already, or comes later
		client, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		client.SetDeadline(time.Now().Add(patience))
		if early {
			say(t, client, "GET / HTTP/1.1\r\nHost: a\r\n\r\nhello\n")
			<-taken
		} else {
			say(t, client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			<-taken
			say(t, client, "hello\n")
		}
		if got, err := bufio.NewReader(client).ReadString('\n'); got != "you said hello\n" {
			t.Errorf("early %t: %q, %v", early, got, err)
		}
	}
}
