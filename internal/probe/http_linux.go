package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

const (
	maxAnswer  = 64 << 10 // read of an answer, head and body
	maxInterim = 10       // answers like 103 Early Hints before the real one
	maxShown   = 200      // characters of it in an error
)

// get asks for p.Path on c, which the generation has accepted. 2xx and 3xx are healthy.
func get(ctx context.Context, c net.Conn, p release.Probe) error {
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	path, host := p.Path, p.Host
	if path == "" {
		path = "/"
	}
	if host == "" {
		host = "localhost"
	}
	res, err := roundTrip(c, host, path)
	if err != nil {
		return fmt.Errorf("GET %s: %w", path, inTime(ctx, err))
	}
	defer res.Body.Close()
	if res.StatusCode >= 200 && res.StatusCode < 400 {
		return nil
	}
	body, _ := io.ReadAll(io.LimitReader(res.Body, 4*maxShown)) // a character has at most four bytes
	if text := shown(string(body)); text != "" {
		return fmt.Errorf("GET %s: %s: %s", path, shown(res.Status), text)
	}
	return fmt.Errorf("GET %s: %s", path, shown(res.Status))
}

func roundTrip(c net.Conn, host, path string) (*http.Response, error) {
	req, err := http.NewRequest(http.MethodGet, "http://"+host+path, nil)
	if err != nil {
		return nil, err
	}
	req.Close = true
	req.Header.Set("User-Agent", "hotdeploy")
	if err := req.Write(c); err != nil {
		return nil, err
	}
	answer := bufio.NewReader(&io.LimitedReader{R: c, N: maxAnswer})
	for range maxInterim {
		res, err := http.ReadResponse(answer, req)
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return nil, errors.New("the connection was closed before the answer, or the answer's head is too long")
		}
		if err != nil || res.StatusCode >= 200 || res.StatusCode == http.StatusSwitchingProtocols {
			return res, err
		}
	}
	return nil, errors.New("nothing but interim answers")
}

// shown is the beginning of what an app said, fit for one line on a terminal.
func shown(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	runes := []rune(strings.TrimSpace(s))
	if len(runes) > maxShown {
		return string(runes[:maxShown]) + "..."
	}
	return string(runes)
}
