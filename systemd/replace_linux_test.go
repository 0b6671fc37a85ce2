package systemd

import (
	"context"
	"fmt"
	"io"
	"testing"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

func TestReplace_OnlyWhoSaysThatNothingChangedIsTakenAtHisWord(t *testing.T) {
	for _, c := range []struct {
		why  error
		want bool
	}{
		{nil, false},
		{ErrTooOld, false},
		{api.ErrStart.With("the new daemon: exit status 3"), false},
		{fmt.Errorf("replace: %w", api.ErrBusy.With("something is in flight")), false},
		{&api.LineError{Err: io.EOF}, false},
		{&api.LineError{Sent: true, Err: io.EOF}, true},
		{fmt.Errorf("not within 1m: %w", &api.LineError{Sent: true, Err: context.DeadlineExceeded}), true},
		{api.ErrInternal.With("the new daemon ended just when it was to go on"), true},
		{io.ErrUnexpectedEOF, true},
	} {
		if got := mayGoOn(c.why); got != c.want {
			t.Errorf("%v: %v", c.why, got)
		}
	}
}
