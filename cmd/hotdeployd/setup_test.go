package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/systemd"
)

func TestSetup_OnlyWhoSaysThatNothingChangedIsTakenAtHisWord(t *testing.T) {
	for _, c := range []struct {
		answer, want error // want: the class that setup tells apart
	}{
		{nil, nil},
		{api.ErrNotFound.With("no such path"), systemd.ErrTooOld},
		{api.ErrStart.With("the new daemon: exit status 3"), nil},
		{fmt.Errorf("replace: %w", api.ErrBusy.With("something is in flight")), nil},
		{&api.LineError{Err: io.EOF}, nil},
		{&api.LineError{Sent: true, Err: io.EOF}, systemd.ErrUnanswered},
		{fmt.Errorf("not within 1m: %w", &api.LineError{Sent: true, Err: context.DeadlineExceeded}), systemd.ErrUnanswered},
		{api.ErrInternal.With("the new daemon ended just when it was to go on"), systemd.ErrUnanswered},
		{io.ErrUnexpectedEOF, systemd.ErrUnanswered},
	} {
		got := forSetup(c.answer)
		if (got == nil) != (c.answer == nil) {
			t.Errorf("%v: %v", c.answer, got)
		}
		for _, class := range []error{systemd.ErrTooOld, systemd.ErrUnanswered} {
			if errors.Is(got, class) != (class == c.want) {
				t.Errorf("%v: %v", c.answer, got)
			}
		}
	}
}
