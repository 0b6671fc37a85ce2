package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"

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
	fd := int(tty.Fd()) // blocking from here on: nobody else reads this file
	before, err := term.GetState(fd)
	if err != nil {
		tty.Close()
		return "", fmt.Errorf("ask at the terminal: %w", err)
	}
	fmt.Fprint(tty, prompt)
	type line struct {
		text string
		err  error
	}
	read := make(chan line, 1)
	go func() {
		text, err := readLine(tty, fd, secret)
		read <- line{text, err}
	}()
	select {
	case l := <-read:
		if secret {
			fmt.Fprintln(tty)
		}
		tty.Close()
		return l.text, l.err
	case <-ctx.Done():
		term.Restore(fd, before)
		fmt.Fprintln(tty)
		return "", context.Cause(ctx)
	}
}

func readLine(tty *os.File, fd int, secret bool) (string, error) {
	if secret {
		b, err := term.ReadPassword(fd)
		return string(b), err
	}
	text, err := bufio.NewReader(tty).ReadString('\n')
	return strings.TrimRight(text, "\r\n"), err
}
