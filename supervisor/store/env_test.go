package store

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

func TestParseEnv(t *testing.T) {
	for text, want := range map[string]map[string]string{
		"":                                      {},
		"# comment\n  # another\n\n":            {},
		"A=1\nB=2":                              {"A": "1", "B": "2"},
		"A=1\r\nB=2\r\n":                        {"A": "1", "B": "2"},
		"  A=1  ":                               {"A": "1"},
		"export A=1\nexport\tB=2":               {"A": "1", "B": "2"},
		"export=1":                              {"export": "1"},
		"exported=1":                            {"exported": "1"},
		"A=":                                    {"A": ""},
		"A=1\nA=2":                              {"A": "2"},
		"A=a=b=c":                               {"A": "a=b=c"},
		"A=a b  c":                              {"A": "a b  c"},
		"A=#1\nB=a#b":                           {"A": "#1", "B": "a#b"},
		`A='single "quoted" $x \n'`:             {"A": `single "quoted" $x \n`},
		`A="double 'quoted' # x"`:               {"A": `double 'quoted' # x`},
		`A="\"\\\$` + "\\`" + `\n"`:             {"A": `"\$` + "`" + `\n`},
		`A="" # comment`:                        {"A": ""},
		`A='' `:                                 {"A": ""},
		`A={"json":"b", "c": [1]}`:              {"A": `{"json":"b", "c": [1]}`},
		`A=$HOME/x\y`:                           {"A": `$HOME/x\y`},
		"DATABASE_URL=postgres://a:b@c/d?e=f&g": {"DATABASE_URL": "postgres://a:b@c/d?e=f&g"},
		"_a1=x":                                 {"_a1": "x"},
		"A=größe":                               {"A": "größe"},
	} {
		if got, err := parseEnv(text); err != nil || !maps.Equal(got, want) {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
	}
}

func TestAMalformedEnvIsToldByItsLineAndNeverByItsContent(t *testing.T) {
	for _, line := range []string{
		"secret", "secret =1", "1secret=x", "=secret", "se-cret=1", "A='secret", `A="secret`, `A="secret\"`, `A="secret"x`, `A='secret'x`,
		`A='secret'# x`, "A=secret # comment", "A= # secret", "A=secret\t# c", "export", "export secret", "set A=secret", "A=se\x00cret",
		"größe=secret", "A B=secret",
	} {
		_, err := parseEnv("OK=1\n# fine\n" + line + "\n")
		if err == nil {
			t.Errorf("%q was accepted", line)
		} else if !strings.Contains(err.Error(), "line 3") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", line, err)
		}
	}
}

func TestTheHostsEnvironmentWins(t *testing.T) {
	s := open(t, t.TempDir())
	var spec release.Spec
	spec.Run.Env = map[string]string{"B": "release", "C": "release", "D": ""}
	base := []string{"A=base", "B=base", "C=base", "TWICE=1", "TWICE=2", "malformed", "=hidden"}
	env, warnings, err := s.Env(base, spec)
	if want := []string{"A=base", "B=release", "C=release", "D=", "TWICE=2"}; err != nil || !slices.Equal(env, want) || len(warnings) != 0 {
		t.Errorf("without a file: %q, %q, %v", env, warnings, err)
	}
	file := filepath.Join(s.Dir(), "env")
	must(t, os.WriteFile(file, []byte("C=host\nE=host # not a comment to everybody\n"), 0o600))
	if _, _, err := s.Env(base, spec); err == nil || !strings.Contains(err.Error(), file+", line 2") {
		t.Errorf("malformed: %v", err)
	}
	must(t, os.WriteFile(file, []byte("C=host\nE=host\n"), 0o600))
	for mode, warned := range map[os.FileMode]bool{0o600: false, 0o640: false, 0o400: false, 0o644: true, 0o660: true, 0o700: true} {
		must(t, os.Chmod(file, mode))
		env, warnings, err = s.Env(base, spec)
		if want := []string{"A=base", "B=release", "C=host", "D=", "E=host", "TWICE=2"}; err != nil || !slices.Equal(env, want) {
			t.Errorf("with a file: %q, %v", env, err)
		}
		if (len(warnings) == 1) != warned {
			t.Errorf("mode %v: %q", mode, warnings)
		}
	}
}

func TestAnEnvFileThatIsNoneIsAnError(t *testing.T) {
	s := open(t, t.TempDir())
	file := filepath.Join(s.Dir(), "env")
	for name, put := range map[string]func(){
		"a symlink":   func() { must(t, os.Symlink("/etc/hostname", file)) },
		"a directory": func() { must(t, os.Mkdir(file, 0o755)) },
		"too large":   func() { write(t, file, "A="+strings.Repeat("x", maxEnvBytes)) },
	} {
		put()
		if env, _, err := s.Env(nil, release.Spec{}); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %q, %v", name, env, err)
		}
		must(t, os.Remove(file))
	}
}

// A value in single quotes comes back as it was, and no error ever tells a line.
func FuzzParseEnv(f *testing.F) {
	for _, seed := range []string{"A=1", "export A='x'", `A="\""`, "A=a #b", "# c", "A"} {
		f.Add(seed, "value")
	}
	f.Fuzz(func(t *testing.T, text, value string) {
		vars, err := parseEnv(text)
		for name := range vars {
			if !okEnvName(name) || strings.ContainsAny(vars[name], "\x00\n") {
				t.Errorf("%q gave %q=%q", text, name, vars[name])
			}
		}
		if err != nil && len(vars) > 0 {
			t.Errorf("%q: variables and an error", text)
		}
		if strings.ContainsAny(value, "'\n\r\x00") {
			return
		}
		if vars, err := parseEnv("A='" + value + "'"); err != nil || vars["A"] != value {
			t.Errorf("%q: got %q, %v", value, vars["A"], err)
		}
		quoted := strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`, "`", "\\`").Replace(value)
		if vars, err := parseEnv(`A="` + quoted + `"`); err != nil || vars["A"] != value {
			t.Errorf("%q: got %q, %v", quoted, vars["A"], err)
		}
	})
}

// A state that is read can be saved and is the same then.
func FuzzState(f *testing.F) {
	f.Add([]byte(`{"format":1,"service":"chat","next_generation":1}`))
	f.Add([]byte(`{"format":1,"service":"chat","next_generation":3,"committed":{"version":"1","digest":"` + ref.Digest + `"},"stopped":{"boot_id":"x"},"upgrade":{"id":"a","error":{"code":"x"}}}`))
	f.Add([]byte(`{"format":99}`))
	s, err := Open(f.TempDir(), "chat")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		write(t, filepath.Join(s.Dir(), "state/supervisor.json"), string(b))
		st, err := s.LoadState()
		if err != nil {
			return
		}
		must(t, s.SaveState(st))
		again, err := s.LoadState()
		if err != nil || again.NextGeneration != st.NextGeneration {
			t.Errorf("%+v, then %+v, %v", st, again, err)
		}
	})
}
