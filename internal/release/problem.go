package release

import (
	"fmt"
	"strconv"
	"strings"
)

// maxProblems is how many broken rules an [InvalidError] tells; the rest is only counted.
const maxProblems = 10

// FieldError is one broken rule. Field is named as in hotdeploy.toml: "ready.timeout", "listen[1].address".
type FieldError struct {
	Field   string
	Problem string
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Problem }

// InvalidError is what Validate returns: every broken rule, up to a bound.
type InvalidError struct {
	Problems []*FieldError
	More     int // how many were left out
}

func (e *InvalidError) Error() string {
	lines := make([]string, 0, len(e.Problems)+1)
	for _, p := range e.Problems {
		lines = append(lines, p.Error())
	}
	if e.More > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", e.More))
	}
	return strings.Join(lines, "; ")
}

// Unwrap gives the problems one by one.
func (e *InvalidError) Unwrap() []error {
	errs := make([]error, len(e.Problems))
	for i, p := range e.Problems {
		errs[i] = p
	}
	return errs
}

// problems collects broken rules.
type problems struct {
	list []*FieldError
	more int
}

func (p *problems) add(field, format string, args ...any) {
	if len(p.list) == maxProblems {
		p.more++
		return
	}
	p.list = append(p.list, &FieldError{field, fmt.Sprintf(format, args...)})
}

func (p *problems) full() bool { return p.more > 0 }

func (p *problems) err() error {
	if len(p.list) == 0 {
		return nil
	}
	return &InvalidError{p.list, p.more}
}

// quote makes s from outside fit for a message: escaped, and cut if it is long.
func quote(s string) string {
	const most = 100
	if len(s) > most {
		return strconv.Quote(s[:most]) + "..."
	}
	return strconv.Quote(s)
}
