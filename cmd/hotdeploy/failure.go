package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/library"
	"github.com/hotdeploy/hotdeploy/remote"
)

// hostError is a failure on one host.
type hostError struct {
	host string
	f    *remote.Failure
}

func (e *hostError) Error() string { return e.host + ": " + e.f.Error() }
func (e *hostError) Unwrap() error { return e.f }

// someHostsError is a failure after other hosts were done.
type someHostsError struct {
	err         error
	done, later []string
}

func (e *someHostsError) Error() string { return e.err.Error() }
func (e *someHostsError) Unwrap() error { return e.err }

// explain prints an error as three lines at most, besides the app's own last lines.
func (a *app) explain(cmd *cobra.Command, err error) {
	var (
		usage *usageError
		verb  *verbError
		f     *remote.Failure
		some  *someHostsError
	)
	text, state, hint := err.Error(), "", ""
	switch {
	case errors.As(err, &usage):
		hint = usage.hint
	case !errors.As(err, &verb):
		hint = "see  " + cmd.CommandPath() + " --help"
	}
	if errors.As(err, &f) {
		state, hint = f.State, f.Hint
	}
	if errors.As(err, &some) {
		state += "; done before: " + strings.Join(some.done, ", ")
		if len(some.later) > 0 {
			state += "; not begun: " + strings.Join(some.later, ", ")
		}
	}
	printFailure(a.stderr, text, state, hint, outputOf(f))
	a.answer.fail(text, state, hint, f)
}

func outputOf(f *remote.Failure) []string {
	if f == nil {
		return nil
	}
	return f.Output
}

func printFailure(w io.Writer, text, state, hint string, output []string) {
	state, hint = inLine(state), inLine(hint)
	fmt.Fprintf(w, "hotdeploy: error: %s\n", strings.ReplaceAll(visible(text), "\n", "\n    "))
	for _, line := range output {
		fmt.Fprintf(w, "    %s\n", inLine(line))
	}
	if state != "" {
		fmt.Fprintf(w, "hotdeploy: state: %s\n", state)
	}
	if hint != "" {
		fmt.Fprintf(w, "hotdeploy: hint:  %s\n", hint)
	}
}

// visible escapes what is not meant to be seen: the name of a file may hold whatever moves a cursor. Line ends and tabs stay.
func visible(text string) string {
	var b strings.Builder
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(text)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, text[0])
		case r == '\n' || r == '\t' || unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
		text = text[n:]
	}
	return b.String()
}

// inLine is visible for text that is to stay on its line: it must not look like a line of ours.
func inLine(text string) string { return strings.ReplaceAll(visible(text), "\n", `\n`) }

// answer is what --json prints.
type answer struct {
	Outcome api.Outcome   `json:"outcome"`
	Hosts   []*hostAnswer `json:"hosts,omitempty"`
	Error   *answerError  `json:"error,omitempty"`
	Path    string        `json:"path,omitempty"`    // pack, init: what was written
	Release *packedAnswer `json:"release,omitempty"` // pack
	Version string        `json:"version,omitempty"` // version

	Local *[]library.Info `json:"local,omitempty"` // releases --local

	bare   any  // printed instead, if all went well
	wanted bool // also when all went well
}

// hostAnswer is what became of one host.
type hostAnswer struct {
	Host       string            `json:"host"`
	Outcome    api.Outcome       `json:"outcome"`
	NotBegun   bool              `json:"not_begun,omitempty"` // another host failed before
	Error      *answerError      `json:"error,omitempty"`
	Already    bool              `json:"already_serving,omitempty"`
	SentBytes  int64             `json:"sent_bytes,omitempty"`
	Upgrade    *api.Upgrade      `json:"upgrade,omitempty"`
	Status     *api.Status       `json:"status,omitempty"`
	Releases   []api.ReleaseInfo `json:"releases,omitempty"`
	History    []api.Upgrade     `json:"history,omitempty"`
	Setup      any               `json:"setup,omitempty"`
	Daemon     string            `json:"daemon,omitempty"` // its version
	Generation int               `json:"generation,omitempty"`
}

type answerError struct {
	Code    string   `json:"code,omitempty"`
	Message string   `json:"message"`
	State   string   `json:"state,omitempty"`
	Hint    string   `json:"hint,omitempty"`
	Output  []string `json:"output,omitempty"`
}

type packedAnswer struct {
	Version string `json:"version"`
	Digest  string `json:"digest"`
	Bytes   int64  `json:"bytes"`
	Files   int    `json:"files"`
}

func newAnswerError(text, state, hint string, f *remote.Failure) *answerError {
	e := &answerError{Message: text, State: state, Hint: hint, Output: outputOf(f)}
	if coded := new(api.Error); f != nil && errors.As(f.Err, &coded) {
		e.Code = coded.Code
	}
	return e
}

// fail notes why the run failed, unless that is noted at its host already.
func (a *answer) fail(text, state, hint string, f *remote.Failure) {
	for _, h := range a.Hosts {
		if h.Error != nil {
			return
		}
	}
	a.Error = newAnswerError(text, state, hint, f)
}

func (a *answer) value() any {
	if a.bare != nil && a.Outcome == api.Done {
		return a.bare
	}
	return a
}

func (a *app) printJSON(v any) {
	e := json.NewEncoder(a.stdout)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	e.Encode(v) // if standard output is closed there is nobody to tell
}
