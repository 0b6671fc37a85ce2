package e2e

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"text/template"

	"github.com/hotdeploy/hotdeploy/testdata/apps"
)

// project is an app's own project on the operator's machine: a folder with hotdeploy.toml and what is packed.
type project struct {
	t         *testing.T
	service   string
	port      int
	dir       string
	sshConfig string
	base      settings
	hosts     []string // of the target "all"
}

// settings are what tests vary in hotdeploy.toml.
type settings struct {
	Files, Command string // TOML arrays
	Env            string // TOML pairs
	Run            string // TOML lines of [run]
	Listen         string // address of the listener "http"
	Ready          string // TOML lines of [ready]
	Soak           string // a duration
	More           string // TOML, at the end
}

type change func(*settings)

func env(pairs string) change       { return func(s *settings) { s.Env = pairs } }
func soak(d string) change          { return func(s *settings) { s.Soak = d } }
func ready(lines string) change     { return func(s *settings) { s.Ready = lines } }
func more(toml string) change       { return func(s *settings) { s.More += "\n" + toml + "\n" } }
func startWith(array string) change { return func(s *settings) { s.Command = array } }

var serial atomic.Int32

// newProject makes the project of a service that no other test has, with wsecho as its app.
func newProject(t *testing.T) *project {
	t.Helper()
	n := int(serial.Add(1))
	p := &project{t: t, service: fmt.Sprintf("app%d", n), port: 8000 + n, dir: filepath.Join(t.TempDir(), "project"), sshConfig: world.SSHConfig()}
	p.base = settings{Files: `["bin/**"]`, Command: `["bin/wsecho"]`, Listen: fmt.Sprintf(":%d", p.port), Soak: "500ms"}
	p.app("")
	return p
}

// app puts wsecho with that mark into the project: another mark, other bytes.
func (p *project) app(mark string) {
	p.place(apps.BuildMarked(p.t, "wsecho", "", "", mark), "bin/wsecho")
}

// place moves a file into the project.
func (p *project) place(from, name string) {
	p.t.Helper()
	to := filepath.Join(p.dir, name)
	must(p.t, os.MkdirAll(filepath.Dir(to), 0o755))
	must(p.t, os.Rename(from, to))
}

// file writes a file of the project.
func (p *project) file(name string, content []byte) {
	p.t.Helper()
	to := filepath.Join(p.dir, name)
	must(p.t, os.MkdirAll(filepath.Dir(to), 0o755))
	must(p.t, os.WriteFile(to, content, 0o644))
}

// bulk puts 12 MB into the project that are like nothing before, so that their upload takes a while.
func (p *project) bulk() {
	p.t.Helper()
	p.base.Files = `["bin/**", "data/**"]`
	big := make([]byte, 12<<20)
	_, err := randomBytes(big)
	must(p.t, err)
	p.file("data/big", big)
}

var projectFile = template.Must(template.New("").Parse(`service = "{{.Service}}"

[pack]
files = {{.Files}}

[run]
command = {{.Command}}
env = { {{.Env}} }
stop_timeout = "5s"
{{.Run}}

[[listen]]
name = "http"
address = "{{.Listen}}"

[ready]
{{.Ready}}

[soak]
duration = "{{.Soak}}"

[targets.all]
hosts = [{{range $i, $h := .Hosts}}{{if $i}}, {{end}}"{{$h}}"{{end}}]

{{.More}}
`))

// write writes hotdeploy.toml.
func (p *project) write(changes ...change) {
	p.t.Helper()
	s := p.base
	for _, c := range changes {
		c(&s)
	}
	hosts := p.hosts
	if len(hosts) == 0 {
		hosts = []string{"nowhere"}
	}
	var text bytes.Buffer
	must(p.t, projectFile.Execute(&text, struct {
		settings
		Service string
		Hosts   []string
	}{s, p.service, hosts}))
	p.file("hotdeploy.toml", text.Bytes())
}

// start begins a hotdeploy in the project.
func (p *project) start(args ...string) *command {
	p.t.Helper()
	return start(p.t, p.dir, program(), append([]string{"--ssh-config", p.sshConfig}, args...)...)
}

// hotdeploy runs hotdeploy in the project to its end.
func (p *project) hotdeploy(args ...string) *command {
	p.t.Helper()
	return p.start(args...).wait()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// randomBytes fills b with what does not compress.
func randomBytes(b []byte) (int, error) { return rand.Read(b) }
