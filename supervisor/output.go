package supervisor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// What is kept of what generations print, in bytes.
const (
	keptPrinted = 1 << 20  // of all, for logs
	keptTail    = 16 << 10 // of each, for the error when it fails
	maxLine     = 8 << 10  // a longer line is kept as several
)

// output relays what a generation prints where there is no journal, and keeps the end of it. A nil output keeps nothing.
type output struct {
	version string
	read    *os.File
	done    chan struct{} // closed when the relay has ended
	kept    *printed

	mu   sync.Mutex // protects tail; nothing blocks under it
	tail []byte
}

// newOutput returns the relay and the end that the process writes to; the caller closes that one when the process has it.
//
// That end is one for reading too: so the process does not die of a broken pipe with its supervisor. What it prints waits in the pipe for
// the next one, see reopenOutput.
func newOutput(version string, to io.Writer, kept *printed) (*output, *os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer w.Close()
	both, err := reopen(w, os.O_RDWR)
	if err != nil {
		r.Close()
		return nil, nil, err
	}
	return relayFrom(r, version, to, kept), both, nil
}

// reopenOutput goes on with the relay of a process that an earlier supervisor started.
func reopenOutput(version string, pid int, to io.Writer, kept *printed) (*output, error) {
	path := fmt.Sprintf("/proc/%d/fd/1", pid)
	if st, err := os.Stat(path); err != nil || st.Mode().Type() != os.ModeNamedPipe {
		return nil, errors.New("its standard output is no pipe that we may open")
	}
	r, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return relayFrom(r, version, to, kept), nil
}

func relayFrom(r *os.File, version string, to io.Writer, kept *printed) *output {
	o := &output{version: version, read: r, done: make(chan struct{}), kept: kept}
	go o.relay(to)
	return o
}

// reopen opens what f is anew, in another mode.
func reopen(f *os.File, flag int) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var again *os.File
	if ctlErr := raw.Control(func(fd uintptr) { again, err = os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), flag, 0) }); ctlErr != nil {
		return nil, ctlErr
	}
	return again, err
}

// relay ends when every process that holds the other end has ended, or at close.
func (o *output) relay(to io.Writer) {
	defer close(o.done)
	buf := make([]byte, 16<<10)
	var begun []byte // a line without its end
	for {
		n, err := o.read.Read(buf)
		o.keep(buf[:n])
		begun = o.lines(append(begun, buf[:n]...), err != nil)
		if n > 0 {
			to.Write(buf[:n]) // nobody to tell if that fails
		}
		if err != nil {
			return
		}
	}
}

// lines hands whole lines on and returns what is left; at the end nothing is.
func (o *output) lines(b []byte, last bool) (begun []byte) {
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		if i < 0 && len(b) < maxLine && !last {
			break
		}
		if i < 0 || i >= maxLine {
			i = min(len(b), maxLine) - 1
		}
		o.kept.add(o.version, b[:i+1])
		b = b[i+1:]
	}
	return append([]byte(nil), b...)
}

func (o *output) keep(b []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.tail = append(o.tail, b...); len(o.tail) > 2*keptTail {
		o.tail = append([]byte(nil), o.tail[len(o.tail)-keptTail:]...)
	}
}

// lastLines returns the last n lines.
func (o *output) lastLines(n int) []string {
	if o == nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	lines := bytes.Split(bytes.TrimRight(o.tail, "\n"), []byte("\n"))
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

// printed keeps the newest lines of all generations, as they came, and wakes whoever waits for more.
type printed struct {
	mu    sync.Mutex // protects the fields below; nothing blocks under it
	seq   uint64     // of the newest line
	list  []printedLine
	bytes int
	more  chan struct{} // closed and replaced at each line
}

type printedLine struct {
	seq     uint64
	version string
	text    []byte
}

func newPrinted() *printed { return &printed{more: make(chan struct{})} }

func (p *printed) add(version string, line []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seq++
	p.list = append(p.list, printedLine{p.seq, version, append([]byte(nil), line...)})
	p.bytes += len(line)
	if p.bytes > keptPrinted+keptPrinted/4 {
		first := 0
		for ; p.bytes > keptPrinted; first++ {
			p.bytes -= len(p.list[first].text)
		}
		p.list = append([]printedLine(nil), p.list[first:]...)
	}
	close(p.more)
	p.more = make(chan struct{})
}

// after returns the kept lines after number seq, of one release or of all, the number of the newest, and a channel that is
// closed when there are more.
func (p *printed) after(seq uint64, version string) (b []byte, newest uint64, more <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.list {
		if l.seq > seq && (version == "" || l.version == version) {
			b = append(b, l.text...)
		}
	}
	return b, p.seq, p.more
}

// beforeLast is the number before the last n kept lines, of one release or of all; found is false if there are none.
func (p *printed) beforeLast(n int, version string) (seq uint64, found bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	seq = p.seq
	for i := len(p.list) - 1; i >= 0; i-- {
		if l := p.list[i]; version == "" || l.version == version {
			if found = true; n == 0 {
				break
			}
			n--
			seq = l.seq - 1
		}
	}
	return seq, found
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
