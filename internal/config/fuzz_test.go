package config

import (
	"bytes"
	"regexp"
	"testing"

	"github.com/BurntSushi/toml"
)

var indexForm = regexp.MustCompile(`\[[0-9]+\]`)

// FuzzParse looks for panics, for settings that are taken though they break a rule, and for keys without a line.
func FuzzParse(f *testing.F) {
	f.Add([]byte(whole))
	f.Add([]byte(least))
	f.Add(Template("chat"))
	f.Add([]byte("a.\"b c\".d = [{e = '''\nx''', f = \"\"\"a\"\"\"\"\"}, # x\n]\n[[g]]\n[g.h]\n[[g]]\n"))
	f.Add([]byte("service = 3\n[[listen]]\nname = \"\\u0000\"\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse("hotdeploy.toml", b)
		if err == nil && p.Validate() != nil {
			t.Errorf("taken, but %v", p.Validate())
		}
		if len(b) <= MaxFileBytes {
			checkLines(t, b)
		}
	})
}

// checkLines holds our reading of lines against the parser's list of keys.
func checkLines(t *testing.T, b []byte) {
	var raw map[string]any
	md, err := toml.Decode(string(b), &raw)
	if err != nil || bytes.HasPrefix(b, []byte("\xff\xfe")) || bytes.HasPrefix(b, []byte("\xfe\xff")) {
		return
	}
	have := map[string]bool{}
	for key, line := range mapLines(string(b)) {
		if line < 1 || line > bytes.Count(b, []byte("\n"))+1 {
			t.Errorf("%s is at line %d", key, line)
		}
		have[indexForm.ReplaceAllString(key, "")] = true
	}
	for _, key := range md.Keys() {
		name := ""
		for _, k := range key {
			name = join(name, k)
		}
		if len(key) <= maxDepth/2 && !have[indexForm.ReplaceAllString(name, "")] {
			t.Errorf("no line for %s", name)
		}
	}
}

// FuzzLoadDaemon looks for panics, and for settings that cannot be written as they were read.
func FuzzLoadDaemon(f *testing.F) {
	f.Add([]byte("service = \"chat\"\n"))
	f.Add([]byte("service = \"chat\"\nroot = \"/srv/chat\"\nrun_dir = \"/run/chat\"\nuser = \"chat\"\n"))
	f.Add([]byte("service = \"../x\"\nroot = \"\\u0000\"\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := ParseDaemon("chat.toml", b)
		if err != nil {
			return
		}
		again, err := d.Encode()
		if err != nil {
			t.Fatalf("%+v: %v", d, err)
		}
		if got, err := ParseDaemon("chat.toml", again); err != nil || *got != *d {
			t.Errorf("%+v became %+v, %v", d, got, err)
		}
	})
}
