package config

import (
	"bytes"
	_ "embed"
	"fmt"
	"strings"
	"text/template"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

//go:embed hotdeploy.toml.tmpl
var templateText string

var templateForm = template.Must(template.New(FileName).Funcs(template.FuncMap{"list": tomlList, "str": tomlString}).Parse(templateText))

// Template is the commented hotdeploy.toml for a service that builds one program, bin/<service>.
func Template(service string) []byte { return render(service, oneProgram(service)) }

// TemplateFor is Template filled in for what is found in dir: a Go module, a Node package, Python. What it cannot tell
// is as in Template.
func TemplateFor(service, dir string) ([]byte, error) {
	g, err := guess(service, dir)
	if err != nil {
		return nil, err
	}
	return render(service, g), nil
}

func render(service string, a app) []byte {
	var defaults release.Spec
	defaults.Health = release.DefaultHealth()
	defaults.SetDefaults()
	var b bytes.Buffer
	// Nothing in it can fail: the text is ours and it writes to memory.
	if err := templateForm.Execute(&b, map[string]any{"Service": service, "App": a, "Default": short(&defaults)}); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// short has the defaults as people write them: 24h, not 24h0m0s.
func short(s *release.Spec) map[string]any {
	d := func(d release.Duration) string {
		t := time.Duration(d).String()
		if strings.HasSuffix(t, "m0s") {
			t = strings.TrimSuffix(t, "0s")
		}
		if strings.HasSuffix(t, "h0m") {
			t = strings.TrimSuffix(t, "0m")
		}
		return fmt.Sprintf("%q", t)
	}
	return map[string]any{
		"Stop": d(s.Run.StopAfter), "Ready": d(s.Ready.Timeout), "Soak": d(s.Soak.Duration),
		"Interval": d(s.Health.Interval), "Timeout": d(s.Health.Timeout), "Failures": s.Health.Failures,
		"MaxAge": d(s.Drain.MaxAge), "MaxGenerations": s.Drain.MaxGenerations, "Spread": d(s.Drain.Spread),
		"Backoff": d(s.Restart.Backoff), "MaxBackoff": d(s.Restart.MaxBackoff), "Crashes": s.Restart.Crashes, "Window": d(s.Restart.Window),
		"Keep": s.Releases.Keep,
	}
}

// tomlString writes s as a TOML string. Escapes are those that TOML and Go have in common.
func tomlString(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteRune('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func tomlList(list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = tomlString(s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}
