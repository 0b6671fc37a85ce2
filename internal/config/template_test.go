package config

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

func TestTemplate_IsValidAndSaysTheDefaults(t *testing.T) {
	p, err := Parse(FileName, Template("chat"))
	if err != nil {
		t.Fatal(err)
	}
	want := release.Spec{
		Run:       release.Run{Command: []string{"bin/chat"}},
		Listeners: []release.Listener{{Name: "http", Network: "tcp", Address: ":8080"}},
	}
	want.SetDefaults()
	if !reflect.DeepEqual(p.Spec, want) {
		t.Errorf("got %+v, want %+v", p.Spec, want)
	}
}

// commented is a key that is commented out: no space after the #.
var commented = regexp.MustCompile(`(?m)^#([a-z_\[])`)

func TestTemplate_CommentedKeysShowTheDefaults(t *testing.T) {
	all := commented.ReplaceAllString(string(Template("chat")), "$1")
	var p Project
	if _, err := decode(FileName, []byte(all), &p, new(problems)); err != nil {
		t.Fatal(err)
	}
	var want release.Spec
	want.Health = release.DefaultHealth()
	want.SetDefaults()
	got := p.Spec
	if got.Run.StopAfter != want.Run.StopAfter || got.Ready.Timeout != want.Ready.Timeout || got.Soak != want.Soak ||
		got.Drain != want.Drain || got.Restart != want.Restart || got.Releases != want.Releases ||
		got.Health.Interval != want.Health.Interval || got.Health.Timeout != want.Health.Timeout || got.Health.Failures != want.Health.Failures {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestTemplate_NamesEveryKey(t *testing.T) {
	var raw map[string]any
	if _, err := toml.Decode(commented.ReplaceAllString(string(Template("chat")), "$1"), &raw); err != nil {
		t.Fatal(err)
	}
	var look func(key string, typ reflect.Type, value any)
	look = func(key string, typ reflect.Type, value any) {
		switch v := reflect.ValueOf(value); {
		case typ.Kind() == reflect.Pointer:
			look(key, typ.Elem(), value)
		case typ.Kind() == reflect.Slice && typ.Elem().Kind() == reflect.Struct:
			look(key, typ.Elem(), v.Index(0).Interface())
		case typ.Kind() == reflect.Map && typ.Elem().Kind() == reflect.Struct:
			look(key, typ.Elem(), value.(map[string]any)["production"])
		case typ.Kind() == reflect.Struct:
			for name, f := range tomlFields(typ) {
				in, ok := value.(map[string]any)[name]
				if !ok {
					t.Errorf("%s.%s is not in the template", key, name)
					continue
				}
				look(key+"."+name, f, in)
			}
		}
	}
	look("", reflect.TypeFor[Project](), raw)
}

func TestTemplateFor_LooksWhatIsInTheFolder(t *testing.T) {
	for _, c := range []struct {
		name            string
		files           map[string]string
		command, files2 []string
		check, says     string
	}{
		{"nothing", nil, []string{"bin/chat"}, []string{"bin/chat"}, "notify", ""},
		{"Go", map[string]string{"go.mod": "module x", "main.go": ""}, []string{"bin/chat"}, []string{"bin/chat"}, "notify", "CGO_ENABLED=0 GOOS=linux go build -trimpath -o bin/chat .\n"},
		{"Go with a command", map[string]string{"go.mod": "", "cmd/a/main.go": "", "cmd/chat/main.go": ""}, []string{"bin/chat"}, []string{"bin/chat"}, "notify", "-o bin/chat ./cmd/chat\n"},
		{"Go with another command", map[string]string{"go.mod": "", "cmd/a/main.go": ""}, []string{"bin/chat"}, []string{"bin/chat"}, "notify", "-o bin/chat ./cmd/a\n"},
		{"Node", map[string]string{"package.json": `{"main": "lib/x.js"}`, "lib/x.js": "", "index.js": ""}, []string{"node", "lib/x.js"}, []string{"**"}, "tcp", "npm ci"},
		{"Node with a start script", map[string]string{"package.json": `{"main": "x.js", "scripts": {"start": "node ./srv.js"}}`, "srv.js": "", "x.js": ""}, []string{"node", "srv.js"}, []string{"**"}, "tcp", ""},
		{"Node, main is not there", map[string]string{"package.json": `{"main": "../../etc/passwd"}`, "app.js": ""}, []string{"node", "app.js"}, []string{"**"}, "tcp", ""},
		{"Node, broken", map[string]string{"package.json": `{`}, []string{"node", "server.js"}, []string{"**"}, "tcp", ""},
		{"Python", map[string]string{"util.py": "", "app.py": ""}, []string{"python3", "app.py"}, []string{"**"}, "tcp", ""},
		{"Python, one file", map[string]string{"foo.py": ""}, []string{"python3", "foo.py"}, []string{"**"}, "tcp", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range c.files {
				write(t, filepath.Join(dir, name), text)
			}
			b, err := TemplateFor("chat", dir)
			if err != nil {
				t.Fatal(err)
			}
			p, err := Parse(FileName, b)
			if err != nil {
				t.Fatalf("%v\n%s", err, b)
			}
			if !reflect.DeepEqual(p.Run.Command, c.command) || !reflect.DeepEqual(p.Pack.Files, c.files2) || p.Ready.Check != c.check {
				t.Errorf("got %v %v %v", p.Run.Command, p.Pack.Files, p.Ready.Check)
			}
			if !strings.Contains(string(b), c.says) {
				t.Errorf("does not say %q:\n%s", c.says, b)
			}
		})
	}
}

func TestWriteTemplate_LeavesAFileThatIsThere(t *testing.T) {
	dir := t.TempDir()
	if err := WriteTemplate("chat", dir); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, FileName), "mine")
	if err := WriteTemplate("chat", dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v, want ErrExist", err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, FileName)); string(b) != "mine" {
		t.Errorf("the file became %q", b)
	}
}

func TestServiceName_IsAlwaysValid(t *testing.T) {
	cases := map[string]string{
		"/home/a/chat": "chat", "/x/My Chat_App.v2": "my-chat-app-v2", "/x/3d-print": "d-print", "/": "app", "/x/日本": "app",
		"/x/" + strings.Repeat("a", 40): strings.Repeat("a", 31), "/x/" + strings.Repeat("a", 30) + "-b": strings.Repeat("a", 30),
	}
	for dir := range maps.Keys(cases) {
		got := ServiceName(dir)
		if got != cases[dir] || release.CheckService(got) != nil {
			t.Errorf("%s: got %q, want %q", dir, got, cases[dir])
		}
	}
}

func TestTomlString(t *testing.T) {
	for _, s := range []string{"", `a"b\c`, "tab\tnul\x00del\x7f\n", "ä€😀"} {
		var v struct{ A string }
		if _, err := toml.Decode("A = "+tomlString(s), &v); err != nil || v.A != s {
			t.Errorf("%q: got %q, %v", s, v.A, err)
		}
	}
}
