package upgrade

import "errors"

// ErrHandoff is what Read returns when the connection moves to the next release, and what Read and Write return after the Close that follows. It is not a
// net.Error, since libraries replace those; errors.Is finds it in what they make of it. A handler that knows nothing of it does the right
// thing: it returns and closes, and the client notices neither. Between the failed Read and Close writes go out as always, except for a goodbye
// (a close frame, a DISCONNECT), which is held back. If the move fails, the connection comes out of Accept of this same process again, resumed.
var ErrHandoff = errors.New("connection moves to the next release")

// Reason says why a connection stayed where it was, in the words that are counted and shown. The empty one means that it moved.
type Reason string

// The reasons, as they are counted and shown.
const (
	ReasonBusy        Reason = "busy"                // a request or an unfinished long message was in flight all the time
	ReasonStuck       Reason = "handler stuck"       // the handler was told and did not close in time
	ReasonClosing     Reason = "closing"             // one of the two sides had begun to end it
	ReasonClosed      Reason = "closed"              // it ended meanwhile
	ReasonTLS         Reason = "tls"                 // the app ends TLS itself
	ReasonHTTP2       Reason = "http/2"              // many requests at a time on one connection
	ReasonUnknown     Reason = "unknown protocol"    // not the protocol of its listener, or none
	ReasonUnsent      Reason = "too much unsent"     // a slow client had more than MaxUnsent waiting
	ReasonOpening     Reason = "opening too long"    // what the client said at the start is too long to keep
	ReasonCompression Reason = "compression context" // the app compresses with a context that cannot move
	ReasonHalfWritten Reason = "half written"        // the handler closed in the middle of a message of its own
	ReasonState       Reason = "state"               // the session's state could not be saved, or is too large
	ReasonRefused     Reason = "refused"             // the next release's app did not accept it, or answered otherwise than the first
	ReasonUnsettled   Reason = "not settled yet"     // it had moved a moment ago and its app has not answered
)

// Limits of what is kept of one connection, in bytes. One that has more stays.
const (
	MaxOpening = 64 << 10 // of what the client said at the start
	MaxKept    = 1 << 20  // of an unfinished message; a longer one is waited for
	MaxUnsent  = 4 << 20  // written by the app, not taken by the kernel yet
	MaxState   = 16 << 20 // of the session
)
