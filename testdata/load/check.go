package load

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// window is how many messages of one WebSocket may be unanswered. Their bytes
// fit into any socket buffer, so that sending them cannot block the sender that
// all WebSockets share.
const window = 64

// answer is what wsecho sends for each message.
type answer struct {
	N    int64  `json:"n"`
	V    string `json:"v"`
	Pid  int    `json:"pid"`
	Echo string `json:"echo"`
}

// check is the judgement over one WebSocket: pure, without I/O or clock.
// Messages are numbered from 1; so is the server's counter.
type check struct {
	held    Held
	prefix  string // of every message of this WebSocket
	sent    int64  // highest number sent
	next    int64  // the number whose echo comes next, if all is well
	missing map[int64]bool
	lastN   int64

	echoed, doubled, reordered, miscounted, wrong int64

	version string
	pid     int
	changed int64 // how often version or pid changed
}

func newCheck(held Held, prefix string) check {
	return check{held: held, prefix: prefix, next: 1, missing: map[int64]bool{}}
}

// nextMessage takes the next number.
func (c *check) nextMessage() string {
	c.sent++
	return c.prefix + strconv.FormatInt(c.sent, 10)
}

// outstanding is how many messages have no echo yet.
func (c *check) outstanding() int64 { return c.sent - (c.next - 1) + int64(len(c.missing)) }

// receive judges one frame from the server. newest is the number of the message
// it answers, 0 unless that is later than all answered before; problems is
// empty if all is well.
func (c *check) receive(frame []byte) (newest int64, problems []string) {
	var a answer
	if err := json.Unmarshal(frame, &a); err != nil {
		c.wrong++
		return 0, []string{fmt.Sprintf("an answer that is not JSON: %.80q", frame)}
	}
	number := c.numberOf(a.Echo)
	if number == 0 {
		c.wrong++
		return 0, []string{fmt.Sprintf("an answer to what was never sent: %.80q", a.Echo)}
	}
	if number >= c.next {
		newest = number
	}
	for _, p := range []string{c.order(number), c.count(a.N), c.owner(a.V, a.Pid)} {
		if p != "" {
			problems = append(problems, p)
		}
	}
	return newest, problems
}

// numberOf is the number of the message with exactly this text, 0 if no such
// message was sent.
func (c *check) numberOf(text string) int64 {
	digits, ours := strings.CutPrefix(text, c.prefix)
	n, err := strconv.ParseInt(digits, 10, 64)
	if !ours || err != nil || n < 1 || n > c.sent || strconv.FormatInt(n, 10) != digits {
		return 0
	}
	return n
}

func (c *check) order(number int64) string {
	switch {
	case number == c.next:
		c.next++
		c.echoed++
		return ""
	case number > c.next:
		first := c.next
		for ; c.next < number; c.next++ {
			c.missing[c.next] = true
		}
		c.next++
		c.echoed++
		return fmt.Sprintf("no echo of message %d before that of %d", first, number)
	case c.missing[number]:
		delete(c.missing, number)
		c.echoed++
		c.reordered++
		return fmt.Sprintf("echo of message %d came late, out of order", number)
	default:
		c.doubled++
		return fmt.Sprintf("echo of message %d came twice", number)
	}
}

func (c *check) count(n int64) string {
	want := c.lastN + 1
	c.lastN = n
	if n == want {
		return ""
	}
	c.miscounted++
	return fmt.Sprintf("the server's counter went from %d to %d", want-1, n)
}

func (c *check) owner(version string, pid int) string {
	was, wasPid := c.version, c.pid
	c.version, c.pid = version, pid
	if wasPid == 0 || (was == version && wasPid == pid) {
		return ""
	}
	c.changed++
	if c.held == MayMove {
		return ""
	}
	return fmt.Sprintf("moved from version %q (pid %d) to %q (pid %d)", was, wasPid, version, pid)
}

// lost is how many messages are known to have no echo: passed over by a later
// one, or, once the connection is gone, without one.
func (c *check) lost(gone bool) int64 {
	if gone {
		return c.outstanding()
	}
	return int64(len(c.missing))
}
