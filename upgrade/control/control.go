// Package control is the channel between a supervisor and one generation of an app: what PROTOCOL.md calls the control channel.
//
// It owns one end of a SOCK_SEQPACKET socket pair. What is always true: one packet is one message with at most one descriptor, a descriptor that
// nobody takes is closed, and nothing that the other side sends makes this side allocate more than a packet. Read [Conn.Receive] first.
package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Env names the variable with the descriptor's number. EnvTakes is set where another generation is to hand its connections over, to its mode.
const (
	Env      = "HOTDEPLOY_CONTROL_FD"
	EnvTakes = "HOTDEPLOY_TAKES"
)

// SharedState is the error of a handoff in barrier mode that did not take place, since what the connections share could not move.
const SharedState = "shared state"

// Version is that of the messages here.
const Version = 1

// MaxMessage bounds one message.
const MaxMessage = 64 << 10

// The types of messages.
const (
	Hello   = "hello"
	Give    = "give"
	Take    = "take"
	Given   = "given"
	Proceed = "proceed"

	// Between two processes without a supervisor.
	Commit  = "commit"
	Upgrade = "upgrade"
)

// Message is any message; which fields count is said in PROTOCOL.md.
type Message struct {
	V    int    `json:"v"`
	Type string `json:"type"`

	Protocols []int      `json:"protocols,omitempty"`
	Records   []int      `json:"records,omitempty"`
	States    []uint32   `json:"states,omitempty"`
	Mode      string     `json:"mode,omitempty"`
	Listeners []Listener `json:"listeners,omitempty"`

	ID        int   `json:"id,omitempty"`
	TimeoutMS int64 `json:"timeout_ms,omitempty"`
	Takes     bool  `json:"takes,omitempty"`

	Moved          int            `json:"moved,omitempty"`
	Kept           map[string]int `json:"kept,omitempty"`
	Refused        int            `json:"refused,omitempty"`
	LongestPauseUS int64          `json:"longest_pause_us,omitempty"`
	Error          string         `json:"error,omitempty"`
	PeerHangs      bool           `json:"peer_hangs,omitempty"`
}

// Listener is one that an app serves on.
type Listener struct {
	Name     string `json:"name"`
	Protocol string `json:"protocol"`
}

// Timeout is TimeoutMS as a duration.
func (m Message) Timeout() time.Duration { return time.Duration(m.TimeoutMS) * time.Millisecond }

// Conn is one end of a control channel. Send may be called from any goroutine, Receive from one.
type Conn struct{ sock *net.UnixConn }

// Pair makes a channel: our end, and the other as a file for a child. Both are the caller's.
func Pair() (*Conn, *os.File, error) {
	ours, theirs, err := socketPair(unix.SOCK_SEQPACKET, "control")
	if err != nil {
		return nil, nil, err
	}
	c, err := NewConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return c, theirs, nil
}

// Files makes a channel of which neither end is used yet. Both are the caller's.
func Files() (a, b *os.File, err error) { return socketPair(unix.SOCK_SEQPACKET, "control") }

// HandoffPair makes the two ends of a handoff channel. Both are the caller's.
func HandoffPair() (a, b *os.File, err error) { return socketPair(unix.SOCK_STREAM, "handoff") }

func socketPair(kind int, name string) (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
}

// NewConn makes a Conn of a descriptor, which it closes: it keeps a duplicate.
func NewConn(f *os.File) (*Conn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("control channel: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("control channel: descriptor is a %T", c)
	}
	return &Conn{u}, nil
}

// SyscallConn is for whoever keeps a duplicate of the descriptor, so that the channel outlives this process.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return c.sock.SyscallConn() }

// Close ends the channel.
func (c *Conn) Close() error { return c.sock.Close() }

// Send sends m, and with it a copy of f's descriptor if f is not nil. It blocks at most for timeout.
func (c *Conn) Send(m Message, f *os.File, timeout time.Duration) error {
	m.V = Version
	b, err := json.Marshal(m)
	if err == nil && len(b) > MaxMessage {
		err = fmt.Errorf("%d bytes, more than %d", len(b), MaxMessage)
	}
	if err != nil {
		return fmt.Errorf("control channel: send %s: %w", m.Type, err)
	}
	c.sock.SetWriteDeadline(time.Now().Add(timeout))
	send := func(oob []byte) error {
		_, _, err := c.sock.WriteMsgUnix(b, oob, nil)
		return err
	}
	if f == nil {
		err = send(nil)
	} else {
		err = withFD(f, func(fd uintptr) error { return send(unix.UnixRights(int(fd))) })
	}
	if err != nil {
		return fmt.Errorf("control channel: send %s: %w", m.Type, err)
	}
	return nil
}

// withFD lends f's descriptor without switching it to blocking mode.
func withFD(f *os.File, use func(fd uintptr) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = use(fd) }); err != nil {
		return err
	}
	return inner
}

// ErrMessage is a packet that is no message: the next one may be.
var ErrMessage = errors.New("control channel: not a message")

// ReceiveBy is Receive with a time limit: then the error is os.ErrDeadlineExceeded.
func (c *Conn) ReceiveBy(by time.Time) (Message, *os.File, error) {
	c.sock.SetReadDeadline(by)
	defer c.sock.SetReadDeadline(time.Time{})
	return c.Receive()
}

// Wake ends a ReceiveBy that waits, as if its time were over.
func (c *Conn) Wake() { c.sock.SetReadDeadline(time.Unix(1, 0)) }

// Receive waits for the next message. The file, if there is one, is the caller's. io.EOF: the other side is gone.
func (c *Conn) Receive() (Message, *os.File, error) {
	b, oob := make([]byte, MaxMessage+1), make([]byte, unix.CmsgSpace(4*4))
	n, k, flags, _, err := c.sock.ReadMsgUnix(b, oob)
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			err = io.EOF
		}
		return Message{}, nil, err
	}
	return decode(b[:n], oob[:k], flags)
}

// maxPending is how many messages one Pending handles: whoever sends without end must not hold up its caller.
const maxPending = 64

// Pending handles what has arrived already, without waiting. It must not be called while Receive waits.
func (c *Conn) Pending(handle func(Message)) error {
	raw, err := c.sock.SyscallConn()
	if err != nil {
		return err
	}
	b, oob := make([]byte, MaxMessage+1), make([]byte, unix.CmsgSpace(4*4))
	var list []Message
	err = raw.Control(func(fd uintptr) {
		for range maxPending {
			n, k, flags, _, rerr := unix.Recvmsg(int(fd), b, oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
			if rerr != nil || n == 0 {
				return
			}
			if m, f, derr := decode(b[:n], oob[:k], flags); derr == nil {
				if f != nil {
					f.Close()
				}
				list = append(list, m)
			}
		}
	})
	for _, m := range list {
		handle(m)
	}
	return err
}

func decode(b, oob []byte, flags int) (m Message, f *os.File, err error) {
	f = firstFile(oob)
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || len(b) > MaxMessage {
		err = fmt.Errorf("%w: too long", ErrMessage)
	} else if err = json.Unmarshal(b, &m); err != nil {
		err = fmt.Errorf("%w: %v", ErrMessage, err)
	}
	if err != nil && f != nil {
		f.Close()
		f = nil
	}
	return m, f, err
}

// firstFile returns the first descriptor and closes the others.
func firstFile(oob []byte) *os.File {
	var f *os.File
	msgs, _ := unix.ParseSocketControlMessage(oob)
	for i := range msgs {
		fds, _ := unix.ParseUnixRights(&msgs[i])
		for _, fd := range fds {
			if f == nil {
				f = os.NewFile(uintptr(fd), "handoff")
			} else {
				unix.Close(fd)
			}
		}
	}
	return f
}
