// Delaylink joins two TAP devices and delays or drops the Ethernet frames that pass between
// them, in both directions: a stand-in for tc netem on kernels that lack it. It creates the
// devices, which vanish with it; whoever starts it puts them up and into bridges.
package main

import (
	"errors"
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"
)

const maxFrame = 2048 // an MTU of 1500, its header, and room to spare

// conditions is what one direction of the line does to a frame.
type conditions struct {
	delay  time.Duration
	jitter time.Duration // on top of delay, uniform; frames keep their order
	loss   float64       // percent
	limit  int           // frames under way; what does not fit is dropped
}

type frame struct {
	due time.Time
	n   int
	buf [maxFrame]byte
}

func main() {
	var c conditions
	a := flag.String("a", "dla", "first TAP device")
	b := flag.String("b", "dlb", "second TAP device")
	flag.DurationVar(&c.delay, "delay", 0, "delay each way")
	flag.DurationVar(&c.jitter, "jitter", 0, "extra delay, uniform in [0,jitter), order kept")
	flag.Float64Var(&c.loss, "loss", 0, "frames lost, percent")
	flag.IntVar(&c.limit, "limit", 10000, "frames under way, each way")
	flag.Parse()
	log.SetFlags(0)
	log.SetPrefix("delaylink: ")
	if err := run(*a, *b, c); err != nil {
		log.Fatal(err)
	}
}

// run relays until a device fails; it never returns nil.
func run(a, b string, c conditions) error {
	fa, err := openTAP(a)
	if err != nil {
		return err
	}
	fb, err := openTAP(b)
	if err != nil {
		return err
	}
	failed := make(chan error, 4)
	for _, d := range [][2]int{{fa, fb}, {fb, fa}} {
		queue := make(chan *frame, c.limit)
		free := make(chan *frame, c.limit+1)
		go func() { failed <- receive(d[0], c, queue, free) }()
		go func() { failed <- send(d[1], queue, free) }()
	}
	return <-failed
}

func openTAP(name string) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		return -1, fmt.Errorf("device name %q: %w", name, err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return -1, fmt.Errorf("create device %s: %w", name, err)
	}
	return fd, nil
}

// receive stamps the frames of one device and queues them for send, which hands used frames back.
func receive(fd int, c conditions, queue chan<- *frame, free <-chan *frame) error {
	f := new(frame)
	for {
		n, err := unix.Read(fd, f.buf[:])
		switch {
		case errors.Is(err, unix.EIO): // the device is not up yet; there is nothing to wait on
			time.Sleep(5 * time.Millisecond)
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("read: %w", err)
		}
		if c.loss > 0 && rand.Float64()*100 < c.loss {
			continue
		}
		f.n, f.due = n, time.Now().Add(c.delay)
		if c.jitter > 0 {
			f.due = f.due.Add(rand.N(c.jitter))
		}
		select {
		case queue <- f:
			f = reuse(free)
		default: // the line is full: drop
		}
	}
}

func reuse(free <-chan *frame) *frame {
	select {
	case f := <-free:
		return f
	default:
		return new(frame)
	}
}

func send(fd int, queue <-chan *frame, free chan<- *frame) error {
	for f := range queue {
		if w := time.Until(f.due); w > 0 {
			time.Sleep(w)
		}
		// A write fails while the device is down; that is a loss like any other.
		_, _ = unix.Write(fd, f.buf[:f.n])
		free <- f
	}
	return nil
}
