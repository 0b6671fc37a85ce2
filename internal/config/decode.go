package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"

	"github.com/BurntSushi/toml"
)

// MaxFileBytes is how long a file may be. Far more than anybody writes, few enough for any nesting.
const MaxFileBytes = 256 << 10

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return b, nil
}

// decode reads b into the struct that v points to, which holds the defaults, and returns what b itself says. Mistakes
// in keys and types go to bad; with unknown keys alone v is filled all the same, so that the caller can go on and tell
// everything at once. The error is for what leaves v unusable.
func decode(name string, b []byte, v any, bad *problems) (map[string]any, error) {
	if len(b) > MaxFileBytes {
		return nil, &Error{File: name, Problems: []Problem{{Text: fmt.Sprintf("longer than the %d bytes allowed", MaxFileBytes)}}}
	}
	var raw map[string]any
	if _, err := toml.Decode(string(b), &raw); err != nil {
		return nil, parseError(name, b, err)
	}
	s := schema{root: reflect.TypeOf(v).Elem(), problems: bad}
	s.check("", raw, s.root)
	if s.mistyped {
		return nil, bad.err(name, b)
	}
	if _, err := toml.Decode(string(b), v); err != nil {
		return nil, parseError(name, b, err)
	}
	return raw, nil
}

// parseError counts the lines itself: the parser is one too far when it is the end of the line that it did not expect.
func parseError(name string, b []byte, err error) error {
	p := Problem{Text: strings.TrimPrefix(err.Error(), "toml: ")}
	var pe toml.ParseError
	if errors.As(err, &pe) {
		b = bytes.TrimPrefix(b, []byte("\ufeff"))
		start := min(max(pe.Position.Start, 0), len(b))
		p = Problem{Line: 1 + bytes.Count(b[:start], []byte("\n")), Key: pe.LastKey, Text: pe.Message}
	}
	return &Error{File: name, Problems: []Problem{p}}
}
