package main

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

const (
	queuedLines = 1024
	flushWithin = time.Second
)

// logWriter writes lines from a goroutine of its own, so that nobody in the daemon waits for whoever reads them: a terminal
// after ^S, a log driver that is stuck. What does not fit in its queue is lost, and counted.
type logWriter struct {
	lines chan []byte
	lost  atomic.Int64
	quit  chan struct{} // closed by Close
	done  chan struct{} // closed when all has been written
}

func newLogWriter(to io.Writer) *logWriter {
	l := &logWriter{lines: make(chan []byte, queuedLines), quit: make(chan struct{}), done: make(chan struct{})}
	go l.run(to)
	return l
}

// Write takes one line, and never blocks or fails.
func (l *logWriter) Write(line []byte) (int, error) {
	select {
	case l.lines <- append([]byte(nil), line...):
	default:
		l.lost.Add(1)
	}
	return len(line), nil
}

func (l *logWriter) run(to io.Writer) {
	defer close(l.done)
	for {
		select {
		case line := <-l.lines:
			l.write(to, line)
			continue
		default:
		}
		select {
		case line := <-l.lines:
			l.write(to, line)
		case <-l.quit: // and the queue was empty
			return
		}
	}
}

func (l *logWriter) write(to io.Writer, line []byte) {
	if n := l.lost.Swap(0); n > 0 {
		fmt.Fprintf(to, "hotdeployd: %d lines were lost here: nobody read them in time\n", n)
	}
	to.Write(line) // nobody to tell if that fails
}

// Close waits for what is queued, but not for long.
func (l *logWriter) Close() {
	close(l.quit)
	timer := time.NewTimer(flushWithin)
	defer timer.Stop()
	select {
	case <-l.done:
	case <-timer.C:
	}
}
