package config

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// schema compares what a TOML file says with the struct that it is for. The toml package could decode right away, but it
// stops at the first mistake and takes keys in any case.
type schema struct {
	root     reflect.Type
	mistyped bool // a value is not of its key's type
	*problems
}

var durationType = reflect.TypeFor[release.Duration]()

// check looks at value, which is at key, against type t.
func (s *schema) check(key string, value any, t reflect.Type) {
	switch {
	case t == durationType:
		s.checkDuration(key, value)
	case t.Kind() == reflect.Pointer:
		s.check(key, value, t.Elem())
	case t.Kind() == reflect.Struct:
		s.checkStruct(key, value, t)
	case t.Kind() == reflect.Map:
		s.checkMap(key, value, t)
	case t.Kind() == reflect.Slice:
		s.checkSlice(key, value, t)
	case kindOf(value) != kindNames[t.Kind()]:
		s.wrong(key, value, kindNames[t.Kind()])
	}
}

var kindNames = map[reflect.Kind]string{reflect.String: "a string", reflect.Int: "an integer", reflect.Bool: "true or false"}

func (s *schema) wrong(key string, value any, want string) {
	s.mistyped = true
	s.add(key, "must be %s, not %s", want, kindOf(value))
}

func kindOf(value any) string {
	switch value.(type) {
	case string:
		return "a string"
	case int64:
		return "an integer"
	case float64:
		return "a float"
	case bool:
		return "true or false"
	case map[string]any:
		return "a table"
	}
	if reflect.TypeOf(value).Kind() == reflect.Slice {
		return "an array"
	}
	return "a date or time"
}

func (s *schema) checkDuration(key string, value any) {
	text, ok := value.(string)
	if !ok {
		s.wrong(key, value, `a duration with its unit in quotes, as in "30s", "1m30s" or "24h"`)
		return
	}
	var d release.Duration
	if err := d.UnmarshalText([]byte(text)); err != nil {
		s.mistyped = true
		s.add(key, "%v", err)
	}
}

func (s *schema) checkStruct(key string, value any, t reflect.Type) {
	table, ok := value.(map[string]any)
	if !ok {
		s.wrong(key, value, "a table")
		return
	}
	fields := tomlFields(t)
	for _, k := range slices.Sorted(maps.Keys(table)) {
		at := join(key, k)
		if f, ok := fields[k]; ok {
			s.check(at, table[k], f)
		} else {
			s.add(at, "unknown key%s", s.suggest(key, k, fields))
		}
	}
}

func (s *schema) checkMap(key string, value any, t reflect.Type) {
	table, ok := value.(map[string]any)
	if !ok {
		s.wrong(key, value, "a table")
		return
	}
	for _, k := range slices.Sorted(maps.Keys(table)) {
		s.check(join(key, k), table[k], t.Elem())
	}
}

func (s *schema) checkSlice(key string, value any, t reflect.Type) {
	v := reflect.ValueOf(value)
	if v.Kind() != reflect.Slice {
		want := "an array, as in [\"a\", \"b\"]"
		if t.Elem().Kind() == reflect.Struct {
			want = "an array of tables: write [[" + key + "]]"
		}
		s.wrong(key, value, want)
		return
	}
	for i := range v.Len() {
		s.check(fmt.Sprintf("%s[%d]", key, i), v.Index(i).Interface(), t.Elem())
	}
}

func join(key, k string) string {
	if key == "" {
		return keyText(k)
	}
	return key + "." + keyText(k)
}

// tomlFields are the keys of a struct, those of embedded structs included.
func tomlFields(t reflect.Type) map[string]reflect.Type {
	fields := make(map[string]reflect.Type)
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
		switch {
		case f.Anonymous && name == "":
			maps.Copy(fields, tomlFields(f.Type))
		case name != "" && name != "-":
			fields[name] = f.Type
		}
	}
	return fields
}

// suggest names the key that was probably meant: one spelled alike in the same table, or the same one in another table.
func (s *schema) suggest(table, k string, fields map[string]reflect.Type) string {
	if best := nearest(k, slices.Sorted(maps.Keys(fields))); best != "" {
		return fmt.Sprintf(": did you mean %s?", best)
	}
	top := tomlFields(s.root)
	if t, ok := top[k]; ok && table != "" {
		switch t.Kind() {
		case reflect.String:
			return ": it belongs at the top, before the first [table]"
		case reflect.Slice:
			return ": did you mean [[" + k + "]]?"
		}
		return ": did you mean [" + k + "]?"
	}
	for _, name := range slices.Sorted(maps.Keys(top)) {
		t, header := top[name], "["+name+"]"
		if t.Kind() == reflect.Slice {
			header = "[" + header + "]"
		}
		if t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct || name == table {
			continue
		}
		if _, ok := tomlFields(t)[k]; ok {
			return fmt.Sprintf(": did you mean %s in %s?", k, header)
		}
	}
	return ""
}

// nearest returns the one of known that k was probably meant to be.
func nearest(k string, known []string) string {
	best, least := "", 1+min(len(k), 24)/3
	for _, c := range known {
		if d := distance(strings.ToLower(k), c, least); d <= least && (best == "" || d < least) {
			best, least = c, d
		}
	}
	return best
}

// distance counts the letters to change, add or leave out between a and b, if that is at most most.
func distance(a, b string, most int) int {
	if len(a)-len(b) > most || len(b)-len(a) > most {
		return most + 1
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
