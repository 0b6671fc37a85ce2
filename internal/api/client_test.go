package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// serve runs h on a unix socket and returns a client of it.
func serve(t *testing.T, h http.Handler) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "control.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return clientOf(t, path)
}

func clientOf(t *testing.T, path string) *Client {
	c := NewClient(func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "unix", path) })
	t.Cleanup(c.Close)
	return c
}

// once accepts one connection, reads the request's first line and hands the connection to fn.
func once(t *testing.T, fn func(net.Conn)) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "control.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			bufio.NewReader(c).ReadString('\n')
			fn(c)
			c.Close()
		}
	}()
	return clientOf(t, path)
}

func TestClient_EachVerb_AsksWhatTheAPISays(t *testing.T) {
	ctx := t.Context()
	for _, tt := range []struct {
		want string
		ask  func(*Client) error
	}{
		{"GET /v1/status ", func(c *Client) error { _, err := c.Status(ctx); return err }},
		{"GET /v1/releases ", func(c *Client) error { _, err := c.Releases(ctx); return err }},
		{"POST /v1/uploads the manifest", func(c *Client) error { _, err := c.PlanUpload(ctx, []byte("the manifest")); return err }},
		{"POST /v1/uploads/ab12/complete ", func(c *Client) error { _, err := c.Complete(ctx, "ab12"); return err }},
		{"DELETE /v1/uploads/ab12 ", func(c *Client) error { return c.Discard(ctx, "ab12") }},
		{`POST /v1/upgrades {"kind":"push","version":"2","digest":"ab","by":"me"}`, func(c *Client) error {
			_, err := c.Upgrade(ctx, UpgradeRequest{Kind: KindPush, Version: "2", Digest: "ab", By: "me"})
			return err
		}},
		{"GET /v1/upgrades/7 ", func(c *Client) error { _, err := c.GetUpgrade(ctx, "7"); return err }},
		{"DELETE /v1/upgrades/a%2Fb ", func(c *Client) error { _, err := c.Cancel(ctx, "a/b"); return err }},
		{`POST /v1/start {"by":"me","now":false}`, func(c *Client) error { _, err := c.Start(ctx, StopRequest{By: "me"}); return err }},
		{`POST /v1/stop {"by":"me","now":true}`, func(c *Client) error { _, err := c.Stop(ctx, StopRequest{By: "me", Now: true}); return err }},
		{"DELETE /v1/generations/41 ", func(c *Client) error { return c.Retire(ctx, 41, false) }},
		{"DELETE /v1/generations/41?now=1 ", func(c *Client) error { return c.Retire(ctx, 41, true) }},
		{"GET /v1/logs?follow=1&lines=5&release=2 ", func(c *Client) error {
			return c.Logs(ctx, LogQuery{Release: "2", Lines: 5, Follow: true}, io.Discard)
		}},
		{"GET /metrics ", func(c *Client) error { return c.Metrics(ctx, io.Discard) }},
	} {
		var got string
		c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			got = fmt.Sprintf("%s %s %s", r.Method, r.URL.RequestURI(), b)
			fmt.Fprintln(w, answerTo(r.URL.Path))
		}))
		if err := tt.ask(c); err != nil {
			t.Errorf("%s: %v", tt.want, err)
		}
		if got != tt.want {
			t.Errorf("asked %q, want %q", got, tt.want)
		}
	}
}

func answerTo(path string) string {
	switch path {
	case "/v1/status":
		return `{"api":1}`
	case "/v1/releases":
		return `[]`
	}
	return `{}`
}

func TestStatus_DaemonOfAnotherAPI_OnlyTheVersionsAreRead(t *testing.T) {
	for answer, want := range map[string]string{
		`{"api":1,"daemon":{"version":"1.0.0"},"state":"serving"}`:                 "1 1.0.0 serving",
		`{"api":2,"daemon":{"version":"2.0.0","pid":"seven"},"state":["serving"]}`: "2 2.0.0 ",
	} {
		c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, answer) }))
		st, err := c.Status(t.Context())
		if got := fmt.Sprint(st.API, " ", st.Daemon.Version, " ", st.State); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", answer, got, err, want)
		}
	}
}

func TestStatus_DaemonKnowsAnotherPrefixOnly_ItsVersionIsFound(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v3/status", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"api":3,"daemon":{"version":"3.1"}}`)
	})
	if st, err := serve(t, mux).Status(t.Context()); err != nil || st.API != 3 || st.Daemon.Version != "3.1" {
		t.Fatalf("got %+v, %v", st, err)
	}
	if _, err := serve(t, http.NewServeMux()).Status(t.Context()); !errors.Is(err, ErrNotFound) {
		t.Fatalf("nobody knows a status: %v, want ErrNotFound", err)
	}
}

func TestStatus_SomebodyElseListens_IsAnError(t *testing.T) {
	for _, answer := range []string{"hello", "[]", "{}", ""} {
		c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, answer) }))
		if _, err := c.Status(t.Context()); err == nil {
			t.Errorf("%q passed for a status", answer)
		}
	}
}

func TestClient_DaemonRefuses_TheErrorIsTheSameSentinelWithItsWords(t *testing.T) {
	sent := Error{Code: ErrBusy.Code, Message: "ann@desk is at it", State: "1 is serving", Hint: "wait", Output: []string{"x"}}
	c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusConflict)
		json.NewEncoder(w).Encode(sent)
	}))
	_, err := c.Upgrade(t.Context(), UpgradeRequest{})
	var got *Error
	if !errors.As(err, &got) || !errors.Is(err, ErrBusy) || errors.Is(err, ErrNotFound) {
		t.Fatalf("error %#v, want ErrBusy", err)
	}
	if got.Message != sent.Message || got.State != sent.State || got.Hint != sent.Hint || got.Output[0] != "x" {
		t.Fatalf("got %+v, want %+v", got, sent)
	}
}

func TestClient_AnswerThatIsNoError_IsToldInWords(t *testing.T) {
	for status, want := range map[int]error{http.StatusNotFound: ErrNotFound, http.StatusBadGateway: ErrInternal} {
		c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "<html>", status) }))
		if _, err := c.Status(t.Context()); !errors.Is(err, want) {
			t.Errorf("status %d: %v, want code %s", status, err, want.(*Error).Code)
		}
	}
}

func TestClient_NobodyListens_TheRequestWasNeverSent(t *testing.T) {
	_, err := clientOf(t, filepath.Join(t.TempDir(), "none")).Upgrade(t.Context(), UpgradeRequest{})
	if !errors.Is(err, ErrNotSent) || errors.Is(err, ErrLineLost) {
		t.Fatalf("error %v, want ErrNotSent", err)
	}
}

func TestClient_LineCutAfterTheRequest_IsUnknown(t *testing.T) {
	answers := map[string]string{
		"before the answer": "",
		"in the header":     "HTTP/1.1 202 Acc",
		"in the body":       "HTTP/1.1 202 Accepted\r\nContent-Length: 100\r\n\r\n{\"id\":",
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			c := once(t, func(conn net.Conn) { io.WriteString(conn, answer) })
			_, err := c.Upgrade(t.Context(), UpgradeRequest{})
			if !errors.Is(err, ErrLineLost) || errors.Is(err, ErrNotSent) {
				t.Fatalf("error %v, want ErrLineLost", err)
			}
		})
	}
}

func TestClient_ContextEndsWhileWaiting_SaysSoAndThatItMayHaveArrived(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	}))
	_, err := c.Upgrade(ctx, UpgradeRequest{})
	if !errors.Is(err, context.Canceled) || !errors.Is(err, ErrLineLost) {
		t.Fatalf("error %v, want Canceled and ErrLineLost", err)
	}
}

func TestClient_AnswerBeyondTheLimit_IsAnErrorNotACutAnswer(t *testing.T) {
	if _, err := readAll(strings.NewReader("12345"), 4); err == nil {
		t.Fatal("five bytes passed a limit of four")
	}
	if b, err := readAll(strings.NewReader("1234"), 4); err != nil || string(b) != "1234" {
		t.Fatalf("got %q, %v", b, err)
	}
}

func TestEvents_ComeInOrderUntilTheReaderHasEnough(t *testing.T) {
	c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("since") != "7" {
			t.Errorf("since %q, want 7", r.URL.Query().Get("since"))
		}
		fmt.Fprint(w, "{\"seq\":8}\n\n{\"seq\":9}\n")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}))
	enough := errors.New("enough")
	var got []uint64
	err := c.Events(t.Context(), 7, func(e Event) error {
		if got = append(got, e.Seq); e.Seq == 9 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || fmt.Sprint(got) != "[8 9]" {
		t.Fatalf("events %v, error %v", got, err)
	}
}

func TestEvents_StreamEnds_TheLineIsLost(t *testing.T) {
	c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, `{"seq":1}`) }))
	if err := c.Events(t.Context(), 0, func(Event) error { return nil }); !errors.Is(err, ErrLineLost) {
		t.Fatalf("error %v, want ErrLineLost", err)
	}
}

func TestLogs_OwnOutputFails_IsNotTakenForALostLine(t *testing.T) {
	c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "hello") }))
	r, w := io.Pipe()
	r.Close()
	if err := c.Logs(t.Context(), LogQuery{}, w); errors.Is(err, ErrLineLost) || !errors.Is(err, io.ErrClosedPipe) {
		t.Fatalf("error %v, want the pipe's", err)
	}
	var b bytes.Buffer
	if err := c.Logs(t.Context(), LogQuery{}, &b); err != nil || b.String() != "hello\n" {
		t.Fatalf("got %q, %v", b.String(), err)
	}
}
