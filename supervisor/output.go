package supervisor

import (
	"bytes"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// keptOutput is how many bytes of a generation's output are kept for logs and for the error when it fails.
const keptOutput = 256 << 10

// keptOutputs is of how many generations.
const keptOutputs = 16

// output relays what a generation prints where there is no journal, and keeps the end of it. A nil output keeps nothing.
type output struct {
	version string
	read    *os.File
	done    chan struct{} // closed at end of file

	mu      sync.Mutex // protects the fields below; nothing blocks under it
	tail    []byte
	dropped int64 // bytes cut off at the front: tail[0] is byte number dropped
	more    chan struct{}
}

// newOutput returns the relay and the end that the process writes to; the caller closes that one when the process has it.
func newOutput(version string, to io.Writer) (*output, *os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	o := &output{version: version, read: r, done: make(chan struct{}), more: make(chan struct{})}
	go o.relay(to)
	return o, w, nil
}

// relay ends when every process that holds the other end has ended, or at close.
func (o *output) relay(to io.Writer) {
	defer close(o.done)
	buf := make([]byte, 16<<10)
	for {
		n, err := o.read.Read(buf)
		o.keep(buf[:n], err != nil)
		if n > 0 {
			to.Write(buf[:n]) // nobody to tell if that fails
		}
		if err != nil {
			return
		}
	}
}

func (o *output) keep(b []byte, last bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tail = append(o.tail, b...)
	if cut := len(o.tail) - keptOutput; cut > keptOutput/4 {
		o.tail = append(o.tail[:0:0], o.tail[cut:]...)
		o.dropped += int64(cut)
	}
	close(o.more)
	if o.more = make(chan struct{}); last {
		close(o.more)
	}
}

// from returns what was printed from byte number pos on, the number after it, and a channel that is closed when there is more.
func (o *output) from(pos int64) (b []byte, next int64, more <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	pos = max(pos, o.dropped)
	b = append([]byte(nil), o.tail[pos-o.dropped:]...)
	return b, pos + int64(len(b)), o.more
}

// startOfLast is the number of the byte where the last n lines begin.
func (o *output) startOfLast(n int) int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	i := len(bytes.TrimSuffix(o.tail, []byte("\n")))
	for ; n > 0 && i >= 0; n-- {
		i = bytes.LastIndexByte(o.tail[:i], '\n')
	}
	return o.dropped + int64(i+1)
}

// ended tells whether there will be no more.
func (o *output) ended() bool {
	select {
	case <-o.done:
		return true
	default:
		return false
	}
}

// lastLines returns the last n lines.
func (o *output) lastLines(n int) []string {
	if o == nil {
		return nil
	}
	b, _, _ := o.from(0)
	lines := bytes.Split(bytes.TrimRight(b, "\n"), []byte("\n"))
	var out []string
	for _, l := range lines[max(0, len(lines)-n):] {
		if len(l) > 0 {
			out = append(out, string(l[:min(len(l), 500)]))
		}
	}
	return out
}

// close stops the relay after what has been written already; called when the process tree is gone.
func (o *output) close() {
	if o == nil {
		return
	}
	// End of file comes with the last process of the tree. One that escaped from it may still hold the other end, and whoever
	// reads what is relayed may have stopped to do so, but neither holds us.
	o.read.SetReadDeadline(time.Now().Add(time.Second))
	timer := time.NewTimer(2 * time.Second)
	defer timer.Stop()
	select {
	case <-o.done:
	case <-timer.C:
	}
	o.read.Close()
}

// dup is another descriptor of the same open file.
func dup(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var d int
	var dupErr error
	if err := raw.Control(func(fd uintptr) { d, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, os.NewSyscallError("dup", dupErr)
	}
	return os.NewFile(uintptr(d), f.Name()), nil
}
