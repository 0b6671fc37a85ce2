package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// maxProblems is how many mistakes an [Error] tells; the rest is only counted.
const maxProblems = 10

// Error is everything that is wrong with one file, in the order of its lines.
type Error struct {
	File     string
	Problems []Problem
	More     int // how many were left out
}

// Problem is one mistake.
type Problem struct {
	Line int    // 0: at no line, something is missing
	Key  string // as in listen[1].address; empty: the line is not TOML
	Text string
}

// Error has one line for each problem, in the form that editors jump from.
func (e *Error) Error() string {
	lines := make([]string, 0, len(e.Problems)+1)
	for _, p := range e.Problems {
		lines = append(lines, e.File+p.String())
	}
	if e.More > 0 {
		lines = append(lines, fmt.Sprintf("%s: and %d more", e.File, e.More))
	}
	return strings.Join(lines, "\n")
}

func (p Problem) String() string {
	s := ": "
	if p.Line > 0 {
		s = fmt.Sprintf(":%d: ", p.Line)
	}
	if p.Key != "" {
		s += cut(p.Key, 120) + ": "
	}
	return s + cut(p.Text, 300)
}

// cut keeps a message readable whatever a file holds.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}

// problems collects what is wrong with a file; the lines are looked up at the end, if there is anything.
type problems struct {
	list []Problem
	more int
}

func (p *problems) add(key, format string, args ...any) {
	p.list = append(p.list, Problem{Key: key, Text: fmt.Sprintf(format, args...)})
}

// addInvalid takes over what a Validate of package release said.
func (p *problems) addInvalid(err error) {
	var invalid *release.InvalidError
	if !errors.As(err, &invalid) {
		if err != nil {
			p.add("", "%v", err)
		}
		return
	}
	for _, f := range invalid.Problems {
		p.add(f.Field, "%s", f.Problem)
	}
	p.more += invalid.More
}

// err gives each problem its line in b and cuts what is too much to read.
func (p *problems) err(file string, b []byte) error {
	if len(p.list) == 0 {
		return nil
	}
	lines := mapLines(string(b))
	for i := range p.list {
		p.list[i].Line = lines.of(p.list[i].Key)
	}
	slices.SortStableFunc(p.list, func(a, b Problem) int { return a.Line - b.Line })
	e := &Error{File: file, Problems: p.list, More: p.more}
	if n := len(e.Problems) - maxProblems; n > 0 {
		e.Problems, e.More = e.Problems[:maxProblems], e.More+n
	}
	return e
}
