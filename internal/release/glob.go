package release

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// pattern is one entry of pack.files or pack.exclude: path.Match for each element, ** for any number of elements.
// A pattern that matches a directory means everything in it, so that "public" and "public/**" are the same.
type pattern struct {
	text     string
	elements []string
}

func parsePattern(text string) (pattern, error) {
	clean := path.Clean(text)
	switch {
	case text == "":
		return pattern{}, errors.New("is empty")
	case path.IsAbs(text):
		return pattern{}, errors.New("is absolute: write it relative to the project's directory")
	case clean == "..", strings.HasPrefix(clean, "../"), slices.Contains(strings.Split(text, "/"), ".."):
		return pattern{}, errors.New(`has ".." in it: a release is packed from the project's directory`)
	case len(text) > MaxPathBytes:
		return pattern{}, fmt.Errorf("is longer than %d bytes", MaxPathBytes)
	case clean == ".":
		clean = "**"
	}
	p := pattern{text, strings.Split(clean, "/")}
	for _, e := range p.elements {
		if _, err := path.Match(e, ""); err != nil {
			return pattern{}, errors.New("is malformed: [ without ], or \\ at its end")
		}
	}
	return p, nil
}

func parsePatterns(field string, texts []string) ([]pattern, error) {
	patterns := make([]pattern, 0, len(texts))
	for _, text := range texts {
		p, err := parsePattern(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %s %w", field, quote(text), err)
		}
		patterns = append(patterns, p)
	}
	return patterns, nil
}

// CheckPattern is the rule for an entry of pack.files and pack.exclude.
func CheckPattern(text string) error {
	_, err := parsePattern(text)
	return err
}

// match reports whether p matches name. A name that is written out matches itself, so that "[id].js" needs no escapes.
func (p pattern) match(name string) bool {
	return path.Clean(p.text) == name || matchElements(p.elements, strings.Split(name, "/"))
}

// below reports whether something in directory dir may match.
func (p pattern) below(dir string) bool {
	names := strings.Split(dir, "/")
	for i, e := range p.elements {
		switch {
		case e == "**" || i == len(names):
			return true
		case e != names[i] && !matchElement(e, names[i]):
			return false
		}
	}
	return false
}

// matchElements goes back only to the last **, which is enough: what an earlier one could take in addition, the later
// one can take as well. So a pattern cannot make it slow.
func matchElements(pattern, names []string) bool {
	star, taken := -1, 0 // the last ** and how many names it and all before it took
	p, n := 0, 0
	for n < len(names) {
		switch {
		case p < len(pattern) && pattern[p] == "**":
			star, taken = p, n
			p++
		case p < len(pattern) && matchElement(pattern[p], names[n]):
			p, n = p+1, n+1
		case star >= 0:
			taken++
			p, n = star+1, taken
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == "**" {
		p++
	}
	return p == len(pattern)
}

func matchElement(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return ok && err == nil
}
