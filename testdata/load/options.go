package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// Held says what the held WebSockets may see during a deploy.
type Held int

const (
	// Stays: each answers with one version and one pid to the end; it is
	// served by the process that accepted it.
	Stays Held = iota
	// MayMove: version and pid may change, the counter may not skip.
	MayMove
)

// Options is how much load, and where to. The zero value of a field means what
// its comment says; Addr is required.
type Options struct {
	Addr string // host:port; also the Host header

	WebSockets      int           // held from Start to Stop; 0: none
	MessageInterval time.Duration // per WebSocket; 0: one second
	Held            Held

	NewConnsPerSecond int           // each with one request; 0: none
	RequestPath       string        // "": /version, whose body is the version
	RequestTimeout    time.Duration // from dial to end of connection; 0: 10 s

	OpenTimeout time.Duration // for one WebSocket's handshake and first echo; 0: 10 s

	// Dial makes every connection; nil: net.Dialer. It must honour ctx. A
	// connection without deadlines (through SSH, say) will do.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// maxInFlight bounds the requests that wait for an answer, since each holds a
// file descriptor. What is due beyond it counts as failed.
const maxInFlight = 4096

func (o Options) withDefaults() (Options, error) {
	if _, _, err := net.SplitHostPort(o.Addr); err != nil {
		return o, fmt.Errorf("load: address %q: %w", o.Addr, err)
	}
	if o.WebSockets < 0 || o.NewConnsPerSecond < 0 || o.MessageInterval < 0 || o.RequestTimeout < 0 || o.OpenTimeout < 0 {
		return o, errors.New("load: a number or time in the options is negative")
	}
	if o.NewConnsPerSecond > int(time.Second/time.Microsecond) {
		return o, fmt.Errorf("load: %d new connections a second: too many to schedule", o.NewConnsPerSecond)
	}
	setDefault(&o.MessageInterval, time.Second)
	setDefault(&o.RequestTimeout, 10*time.Second)
	setDefault(&o.OpenTimeout, 10*time.Second)
	setDefault(&o.RequestPath, "/version")
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	return o, nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
