package load

import (
	"fmt"
	"sync"
	"time"
)

// maxNotes bounds what is kept in words; the counters go on.
const maxNotes = 30

// Note is one thing that went wrong.
type Note struct {
	At   time.Duration `json:"at_ns"` // since Start
	What string        `json:"what"`
}

func (n Note) String() string { return fmt.Sprintf("+%.3fs %s", n.At.Seconds(), n.What) }

// notes are the first things that went wrong.
type notes struct {
	began time.Time
	mu    sync.Mutex // protects list; innermost, nothing is locked under it
	list  []Note
}

func (n *notes) add(format string, args ...any) {
	at := time.Since(n.began)
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.list) < maxNotes {
		n.list = append(n.list, Note{At: at, What: fmt.Sprintf("%.300s", fmt.Sprintf(format, args...))})
	}
}

func (n *notes) copy() []Note {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]Note(nil), n.list...)
}
