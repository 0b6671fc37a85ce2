package remote

import (
	"bytes"
	"strings"
	"sync"
)

// limited is a buffer for what comes from outside: what is more than limit
// is thrown away and cut says so. With tail it keeps the last instead of the
// first. It may be written from several goroutines.
type limited struct {
	limit int
	tail  bool

	mu  sync.Mutex // protects what follows
	buf bytes.Buffer
	cut bool
}

func (l *limited) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(p)
	room := l.limit - l.buf.Len()
	if n <= room {
		l.buf.Write(p)
		return n, nil
	}
	l.cut = true
	if !l.tail {
		l.buf.Write(p[:room])
		return n, nil
	}
	if n > l.limit {
		p = p[n-l.limit:]
	}
	if over := l.buf.Len() + len(p) - l.limit; over > 0 {
		l.buf.Next(over)
	}
	l.buf.Write(p)
	return n, nil
}

// Bytes is what was kept.
func (l *limited) Bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.buf.Bytes())
}

func (l *limited) String() string { return string(l.Bytes()) }

// oneLine is text for the end of an error.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
