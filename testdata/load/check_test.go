package load

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
)

// Each case is what a server answers to messages 1 to 4, in order.
func TestCheck_TellsWhatIsWrongWithTheAnswers(t *testing.T) {
	type got struct{ echoed, lost, doubled, reordered, miscounted, wrong, changed int64 }
	for _, c := range []struct {
		name    string
		answers string // "n:text[:version]" by blanks
		held    Held
		want    got
		problem string // in what is said first
	}{
		{name: "all is well", answers: "1:m/1 2:m/2 3:m/3 4:m/4", want: got{echoed: 4}},
		{name: "the last two are due", answers: "1:m/1 2:m/2", want: got{echoed: 2}},
		{name: "dropped before it was counted", answers: "1:m/1 2:m/3 3:m/4", want: got{echoed: 3, lost: 1}, problem: "no echo of message 2"},
		{name: "dropped after it was counted", answers: "1:m/1 3:m/3 4:m/4", want: got{echoed: 3, lost: 1, miscounted: 1}, problem: "no echo of message 2"},
		{name: "doubled", answers: "1:m/1 2:m/2 3:m/2 4:m/3 5:m/4", want: got{echoed: 4, doubled: 1}, problem: "message 2 came twice"},
		{name: "doubled with its counter", answers: "1:m/1 1:m/1 2:m/2", want: got{echoed: 2, doubled: 1, miscounted: 1}, problem: "came twice"},
		{name: "reordered", answers: "1:m/1 2:m/3 3:m/2 4:m/4", want: got{echoed: 4, reordered: 1}, problem: "no echo of message 2"},
		{name: "counter starts again", answers: "1:m/1 2:m/2 1:m/3 2:m/4", want: got{echoed: 4, miscounted: 1}, problem: "from 2 to 1"},
		{name: "not ours", answers: "1:m/1 2:x/2", want: got{echoed: 1, wrong: 1}, problem: "never sent"},
		{name: "never sent", answers: "1:m/5", want: got{wrong: 1}, problem: "never sent"},
		{name: "almost the text", answers: "1:m/01", want: got{wrong: 1}, problem: "never sent"},
		{name: "another version", answers: "1:m/1 2:m/2:new 3:m/3:new", want: got{echoed: 3, changed: 1}, problem: `from version "old"`},
		{name: "another version, as it may", answers: "1:m/1 2:m/2:new", held: MayMove, want: got{echoed: 2, changed: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			check := newCheck(c.held, "m/")
			for range 4 {
				check.nextMessage()
			}
			var said []string
			for _, a := range strings.Fields(c.answers) {
				_, problems := check.receive(frame(t, a))
				said = append(said, problems...)
			}
			is := got{check.echoed, check.lost(false), check.doubled, check.reordered, check.miscounted, check.wrong, check.changed}
			if is != c.want {
				t.Errorf("got %+v\nwant %+v", is, c.want)
			}
			switch {
			case c.problem == "" && len(said) > 0:
				t.Errorf("said %q about nothing wrong", said)
			case c.problem != "" && (len(said) == 0 || !strings.Contains(said[0], c.problem)):
				t.Errorf("said %q, want %q", said, c.problem)
			}
			if is := check.echoed + check.outstanding(); is != check.sent {
				t.Errorf("echoed and outstanding are %d, sent are %d", is, check.sent)
			}
		})
	}
}

func frame(t *testing.T, a string) []byte {
	t.Helper()
	parts := strings.Split(a, ":")
	n, err := strconv.ParseInt(parts[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	version := "old"
	if len(parts) > 2 {
		version = parts[2]
	}
	out, err := json.Marshal(answer{N: n, V: version, Pid: 1, Echo: parts[1]})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestCheck_WhatIsNotJSONIsWrong(t *testing.T) {
	c := newCheck(Stays, "m/")
	if _, problems := c.receive([]byte("no")); len(problems) == 0 || c.wrong != 1 {
		t.Errorf("said %q, wrong %d", problems, c.wrong)
	}
}

// With the connection gone nothing is due any more.
func TestCheck_DueMessagesAreLostWithTheConnection(t *testing.T) {
	c := newCheck(Stays, "m/")
	for range 3 {
		c.nextMessage()
	}
	c.receive(frame(t, "1:m/1"))
	if lost := c.lost(false); lost != 0 {
		t.Errorf("lost while connected: %d", lost)
	}
	if lost := c.lost(true); lost != 2 {
		t.Errorf("lost once gone: %d, want 2", lost)
	}
}
