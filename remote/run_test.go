package remote_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/hotdeploy/hotdeploy/internal/sshtest"
	"github.com/hotdeploy/hotdeploy/remote"

	"golang.org/x/crypto/ssh"
)

func TestRun_ArgumentsArriveAsTheyAre(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, _ := newHost(t, start)
		s := dial(t, h, remote.Options{})
		args := []string{"", "plain", "two words", `quo"te`, "apo'strophe", `back\slash\\`, "$HOME `id` $(id)", "new\nline", "*", "~", "-n", "ünïcode", "a;b|c&d>e<f", "!x", "=ls", "%1"}
		out, err := s.Output(deadline(t), 1<<16, append([]string{"printf", `[%s]\0`}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		want := "[" + strings.Join(args, "]\x00[") + "]\x00"
		if string(out) != want {
			t.Errorf("got  %q\nwant %q", out, want)
		}
	})
}

func TestRun_StreamsAreCarriedBothWays(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, _ := newHost(t, start)
		s := dial(t, h, remote.Options{})
		input := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		var out, errs bytes.Buffer
		err := s.Run(deadline(t), []string{"sh", "-c", "cat; echo done >&2"}, bytes.NewReader(input), &out, &errs)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(out.Bytes(), input) || errs.String() != "done\n" {
			t.Errorf("got %d bytes and %q", out.Len(), errs.String())
		}
	})
}

func TestRun_FailureIsAnExitErrorWithWhatItSaid(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, _ := newHost(t, start)
		s := dial(t, h, remote.Options{})
		var exit *remote.ExitError
		err := s.Run(deadline(t), []string{"sh", "-c", "echo no room >&2; exit 7"}, nil, nil, nil)
		if !errors.As(err, &exit) || exit.Status != 7 || exit.Stderr != "no room\n" {
			t.Errorf("got %v", err)
		}
		err = s.Run(deadline(t), []string{"sh", "-c", "kill -KILL $$"}, nil, nil, nil)
		// a shell in between turns the signal into a status
		if !errors.As(err, &exit) || exit.Signal != "KILL" && exit.Status != 137 {
			t.Errorf("got %v", err)
		}
		if errors.Is(err, remote.ErrLineLost) || errors.Is(err, remote.ErrNeverRan) {
			t.Errorf("it ran and failed, and nothing else: %v", err)
		}
	})
}

func TestRun_CancelReturnsAtOnceWhateverBlocks(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, _ := newHost(t, start)
		s := dial(t, h, remote.Options{})
		ctx, cancel := context.WithCancel(deadline(t))
		out := writerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil })
		err := s.Run(ctx, []string{"sh", "-c", "echo started; cat"}, endless(t), out, nil)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if err := s.Run(deadline(t), []string{"true"}, nil, nil, nil); err != nil {
			t.Errorf("the session should live on: %v", err)
		}
	})
}

func TestRun_EndsWithTheCommandNotWithItsInput(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, _ := newHost(t, start)
		s := dial(t, h, remote.Options{})
		if err := s.Run(deadline(t), []string{"true"}, endless(t), nil, nil); err != nil {
			t.Error(err)
		}
	})
}

func TestOutput_MoreThanTheLimitIsAnError(t *testing.T) {
	h, _ := newHost(t, startInProcess)
	s := dial(t, h, remote.Options{})
	out, err := s.Output(deadline(t), 10, "sh", "-c", "echo 0123456789abcdef")
	if err == nil || len(out) > 10 {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestRun_ServerThatRefusesCommandsMeansItNeverRan(t *testing.T) {
	key := newKey(t)
	srv, err := sshtest.Start(sshtest.Options{AuthorizedKeys: []ssh.PublicKey{key.Public()}, ForbidExec: true, ForbidSFTP: true})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	h := hostOf(t, server{addr: srv.Addr(), user: "any", knownHosts: srv.KnownHosts()}, writeKey(t, key, ""))
	s := dial(t, h, remote.Options{})
	err = s.Run(deadline(t), []string{"true"}, nil, nil, nil)
	if !errors.Is(err, remote.ErrNeverRan) || errors.Is(err, remote.ErrLineLost) {
		t.Errorf("got %v", err)
	}
	if _, err := s.SFTP(deadline(t)); !errors.Is(err, remote.ErrNeverRan) {
		t.Errorf("got %v", err)
	}
	if err := s.Run(deadline(t), nil, nil, nil, nil); !errors.Is(err, remote.ErrNeverRan) {
		t.Errorf("no command at all: got %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
