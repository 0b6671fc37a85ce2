package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"

	"github.com/hotdeploy/hotdeploy/remote"
)

// terminalPrompt asks at the terminal, whatever standard input is. Without a terminal there is nobody to ask: nil.
func terminalPrompt() remote.Prompt {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil
	}
	tty.Close()
	return askTerminal
}

// askTerminal reads one line. When ctx ends the terminal is as it was before; the reading itself ends with the process.
func askTerminal(ctx context.Context, prompt string, secret bool) (string, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("ask at the terminal: %w", err)
	}
	fd := int(tty.Fd())             // blocking from here on: nobody else reads this file
	before, err := term.MakeRaw(fd) // before the prompt: whoever types fast must not see a secret either
	if err != nil {
		tty.Close()
		return "", fmt.Errorf("ask at the terminal: %w", err)
	}
	type line struct {
		text string
		err  error
	}
	read := make(chan line, 1)
	go func() {
		text, err := readLine(tty, prompt, secret)
		read <- line{text, err}
	}()
	select {
	case l := <-read:
		term.Restore(fd, before)
		defer tty.Close()
		if errors.Is(l.err, io.EOF) { // ^C, which is no signal while the terminal is raw
			fmt.Fprintln(tty)
			return "", interruptSelf(ctx)
		}
		return l.text, l.err
	case <-ctx.Done():
		term.Restore(fd, before)
		fmt.Fprintln(tty)
		return "", context.Cause(ctx)
	}
}

func readLine(tty *os.File, prompt string, secret bool) (string, error) {
	t := term.NewTerminal(oneByOne{tty}, prompt)
	if secret {
		return t.ReadPassword(prompt)
	}
	return t.ReadLine()
}

// oneByOne leaves what is typed ahead to whoever reads next.
type oneByOne struct{ *os.File }

func (o oneByOne) Read(p []byte) (int, error) { return o.File.Read(p[:min(len(p), 1)]) }

// interruptSelf makes a ^C that was read one that was received.
func interruptSelf(ctx context.Context) error {
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Signal(os.Interrupt)
	}
	if err != nil {
		return fmt.Errorf("interrupt: %w", err)
	}
	<-ctx.Done()
	return context.Cause(ctx)
}
