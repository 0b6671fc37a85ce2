package systemd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// scmMaxFD is how many descriptors the kernel lets travel with one message.
const scmMaxFD = 253

// NotifySocket is the receiving end of the sd_notify protocol: what NOTIFY_SOCKET
// of a generation points at.
type NotifySocket struct {
	conn *net.UnixConn
	path string
}

// NotifyListen binds a notify socket at path, open to our own user only. A
// socket file that nobody listens on any more is replaced; one in use is
// ErrSocketInUse. The caller holds the lock of the directory, and calls Close.
func NotifyListen(path string) (*NotifySocket, error) {
	conn, err := bindDatagram(path)
	if err != nil {
		return nil, fmt.Errorf("listen for notify messages on %s: %w", path, err)
	}
	s := &NotifySocket{conn: conn, path: path}
	if err := s.prepare(); err != nil {
		s.Close()
		return nil, fmt.Errorf("listen for notify messages on %s: %w", path, err)
	}
	return s, nil
}

// NotifyAdopt goes on with a notify socket that an earlier process listened on at path, and whose messages wait in its queue. It owns
// f, also with an error; the error means that the socket is not the one that messages to path arrive at.
func NotifyAdopt(f *os.File, path string) (*NotifySocket, error) {
	defer f.Close() // what follows makes a duplicate
	conn, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("go on with the notify socket %s: %w", path, err)
	}
	c, ok := conn.(*net.UnixConn)
	if !ok || c.LocalAddr().String() != path || !isSocket(path) {
		conn.Close()
		return nil, fmt.Errorf("go on with the notify socket %s: it is not there", path)
	}
	s := &NotifySocket{conn: c, path: path}
	if err := s.prepare(); err != nil {
		s.Close()
		return nil, fmt.Errorf("go on with the notify socket %s: %w", path, err)
	}
	return s, nil
}

func isSocket(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().Type() == os.ModeSocket
}

// SyscallConn lets a later process have the socket.
func (s *NotifySocket) SyscallConn() (syscall.RawConn, error) { return s.conn.SyscallConn() }

// Abandon closes the socket, and leaves its file to whoever goes on with it.
func (s *NotifySocket) Abandon() error { return s.conn.Close() }

func bindDatagram(path string) (*net.UnixConn, error) {
	addr := &net.UnixAddr{Name: path, Net: "unixgram"}
	conn, err := net.ListenUnixgram("unixgram", addr)
	if !errors.Is(err, unix.EADDRINUSE) {
		return conn, err
	}
	if err := removeStaleSocket(addr); err != nil {
		return nil, err
	}
	return net.ListenUnixgram("unixgram", addr)
}

func removeStaleSocket(addr *net.UnixAddr) error {
	peer, err := net.DialUnix(addr.Net, nil, addr)
	if err == nil {
		peer.Close()
		return ErrSocketInUse
	}
	if info, statErr := os.Lstat(addr.Name); statErr == nil && info.Mode().Type() != os.ModeSocket {
		return errors.New("a file that is not a socket is in the way")
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}
	return os.Remove(addr.Name)
}

// prepare makes the kernel attach who sent each message.
func (s *NotifySocket) prepare() error {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	var optErr error
	if err := raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	}); err != nil {
		return err
	}
	if optErr != nil {
		return os.NewSyscallError("setsockopt SO_PASSCRED", optErr)
	}
	return os.Chmod(s.path, 0o600)
}

// Path is what NOTIFY_SOCKET is set to.
func (s *NotifySocket) Path() string { return s.path }

// Close ends a Recv that waits (net.ErrClosed) and removes the socket file.
func (s *NotifySocket) Close() error {
	err := os.Remove(s.path)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, s.conn.Close())
}

// Recv waits for the next message. It is for one goroutine. With ErrMalformed
// the Sender is valid and Recv may be called again; any other error is final,
// ctx's own included.
//
// Descriptors that came along are closed before Recv returns. That is also
// the answer that sd_notify_barrier waits for: messages sent before the
// barrier have been returned by then.
func (s *NotifySocket) Recv(ctx context.Context) (Message, Sender, error) {
	defer s.wakeOn(ctx)()
	return s.result(ctx, 0)
}

// Handle is Recv for whoever must not lose a message when he dies: it stays in the queue until handle, which gets ErrMalformed
// too, has returned. Who comes after him may see it again.
func (s *NotifySocket) Handle(ctx context.Context, handle func(Message, Sender, error)) error {
	defer s.wakeOn(ctx)()
	m, from, err := s.result(ctx, unix.MSG_PEEK)
	if err != nil && !errors.Is(err, ErrMalformed) {
		return err
	}
	handle(m, from, err)
	if _, _, err := s.result(ctx, 0); err != nil && !errors.Is(err, ErrMalformed) {
		return err
	}
	return nil
}

func (s *NotifySocket) result(ctx context.Context, flags int) (Message, Sender, error) {
	m, from, fds, err := s.recv(flags)
	closeAll(fds)
	if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
		return Message{}, Sender{}, context.Cause(ctx)
	}
	return m, from, err
}

// wakeOn ends the read when ctx ends. What it returns undoes that, and leaves
// no deadline behind for the next read.
func (s *NotifySocket) wakeOn(ctx context.Context) (undo func()) {
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		s.conn.SetReadDeadline(time.Unix(1, 0))
	})
	return func() {
		if !stop() {
			<-woken
			s.conn.SetReadDeadline(time.Time{})
		}
	}
}

// recv returns the descriptors of the message also when it is malformed; they
// are the caller's to close.
func (s *NotifySocket) recv(flags int) (Message, Sender, []int, error) {
	data := make([]byte, maxMessage+1) // one more than allowed, so that a cut message is known as too long
	control := make([]byte, unix.CmsgSpace(4*scmMaxFD)+unix.CmsgSpace(unix.SizeofUcred))
	n, controlLen := 0, 0
	raw, err := s.conn.SyscallConn()
	if err == nil {
		var recvErr error
		err = raw.Read(func(fd uintptr) bool {
			n, controlLen, _, _, recvErr = unix.Recvmsg(int(fd), data, control, flags|unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
			return recvErr != unix.EAGAIN && recvErr != unix.EINTR
		})
		err = errors.Join(err, recvErr)
	}
	if err != nil {
		return Message{}, Sender{}, nil, fmt.Errorf("receive a notify message: %w", err)
	}
	from, fds, err := parseControl(control[:controlLen])
	if err != nil {
		return Message{}, from, fds, err
	}
	m, err := ParseMessage(data[:n])
	return m, from, fds, err
}

func parseControl(control []byte) (from Sender, fds []int, err error) {
	messages, err := syscall.ParseSocketControlMessage(control)
	if err != nil {
		return from, nil, fmt.Errorf("%w: control data: %w", ErrMalformed, err)
	}
	known := false
	for i := range messages {
		if rights, err := syscall.ParseUnixRights(&messages[i]); err == nil {
			fds = append(fds, rights...)
		}
		if cred, err := syscall.ParseUnixCredentials(&messages[i]); err == nil {
			from, known = Sender{PID: int(cred.Pid), UID: int(cred.Uid), GID: int(cred.Gid)}, true
		}
	}
	if !known || from.PID <= 0 {
		return from, fds, fmt.Errorf("%w: nobody vouches for its sender", ErrMalformed)
	}
	return from, fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
