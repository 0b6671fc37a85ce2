package config

import (
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

// decode reads b into the struct that v points to, which holds the defaults. It returns what b itself says.
func decode(name string, b []byte, v any) (map[string]any, error) {
	if len(b) > MaxFileBytes {
		return nil, &Error{File: name, Problems: []Problem{{Text: fmt.Sprintf("longer than the %d bytes allowed", MaxFileBytes)}}}
	}
	var raw map[string]any
	if _, err := toml.Decode(string(b), &raw); err != nil {
		return nil, parseError(name, err)
	}
	var p problems
	s := schema{reflect.TypeOf(v).Elem(), &p}
	s.check("", raw, s.root)
	if err := p.err(name, b); err != nil {
		return nil, err
	}
	if _, err := toml.Decode(string(b), v); err != nil {
		return nil, parseError(name, err)
	}
	return raw, nil
}

func parseError(name string, err error) error {
	p := Problem{Text: strings.TrimPrefix(err.Error(), "toml: ")}
	var pe toml.ParseError
	if errors.As(err, &pe) {
		p = Problem{Line: pe.Position.Line, Key: pe.LastKey, Text: pe.Message}
	}
	return &Error{File: name, Problems: []Problem{p}}
}
