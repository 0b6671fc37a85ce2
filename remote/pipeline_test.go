package remote

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/pkg/sftp"
	"golang.org/x/sync/semaphore"
)

// stuckServer is an SFTP server that works out of order as badly as it can:
// the first packet of the file stays undone and unconfirmed until it is let
// go, all others are done and confirmed at once. (That of pkg/sftp confirms
// in order.)
type stuckServer struct {
	conn  net.Conn
	letGo chan struct{}

	mu      sync.Mutex // protects what follows; held while answering
	end     int64      // of what is written
	packets int
	reached chan struct{} // closed when a window's worth of packets is there
}

func (s *stuckServer) serve() {
	for {
		var head [5]byte
		if _, err := io.ReadFull(s.conn, head[:]); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(head[:])-1)
		if _, err := io.ReadFull(s.conn, body); err != nil {
			return
		}
		s.handle(head[4], body)
	}
}

// handle knows as much of the protocol as the test needs; see
// draft-ietf-secsh-filexfer-02.
func (s *stuckServer) handle(kind byte, body []byte) {
	const fxInit, fxOpen, fxWrite, fxVersion, fxHandle = 1, 3, 6, 2, 102
	s.mu.Lock()
	defer s.mu.Unlock()
	id := binary.BigEndian.Uint32(body)
	switch kind {
	case fxInit:
		s.answer(fxVersion, binary.BigEndian.AppendUint32(nil, 3))
	case fxOpen:
		s.answer(fxHandle, append(binary.BigEndian.AppendUint32(nil, id), 0, 0, 0, 1, 'h'))
	case fxWrite:
		rest := body[4+4+1:] // id and handle
		off, n := int64(binary.BigEndian.Uint64(rest)), int64(binary.BigEndian.Uint32(rest[8:]))
		if off == 0 {
			go func() { <-s.letGo; s.mu.Lock(); defer s.mu.Unlock(); s.ok(id) }()
			return
		}
		s.end = max(s.end, off+n)
		if s.packets++; s.packets == maxInFlight-1 {
			close(s.reached)
		}
		s.ok(id)
	default:
		s.ok(id)
	}
}

func (s *stuckServer) ok(id uint32) {
	const fxStatus = 101
	s.answer(fxStatus, append(binary.BigEndian.AppendUint32(nil, id), make([]byte, 12)...))
}

func (s *stuckServer) answer(kind byte, body []byte) {
	s.conn.Write(append(append(binary.BigEndian.AppendUint32(nil, uint32(len(body)+1)), kind), body...))
}

// TestPipeline_FileIsGoodUpToRewindBeforeItsEnd: the promise that resuming
// relies on, with a server of the worst kind.
func TestPipeline_FileIsGoodUpToRewindBeforeItsEnd(t *testing.T) {
	there, here := net.Pipe()
	s := &stuckServer{conn: there, letGo: make(chan struct{}), reached: make(chan struct{})}
	served := make(chan struct{})
	go func() { defer close(served); s.serve() }()
	client, err := sftp.NewClientPipe(here, here)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 4*Rewind)
	sum := sha256.Sum256(data)
	part := Part{Name: hex.EncodeToString(sum[:]), Size: int64(len(data)),
		Open: func() (Source, error) { return nopCloser{bytes.NewReader(data)}, nil }}
	u := &upload{client: client, dir: "/", writes: semaphore.NewWeighted(maxWrites)}
	sent := make(chan error, 1)
	go func() { sent <- u.one(context.Background(), part) }()

	<-s.reached
	for range 100 { // round trips in which more could come
		client.Mkdir("/x")
	}
	s.mu.Lock()
	if s.end != Rewind {
		t.Errorf("%d bytes are there and none is confirmed: that should be %d", s.end, Rewind)
	}
	s.mu.Unlock()
	close(s.letGo)
	if err := <-sent; err != nil {
		t.Error(err)
	}
	client.Close()
	<-served
}

type nopCloser struct{ io.ReaderAt }

func (nopCloser) Close() error { return nil }
