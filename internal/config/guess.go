package config

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// app is what the template needs to know about a project.
type app struct {
	Build          string // how to build it
	Files, Exclude []string
	Command        []string
	Check          string
}

func oneProgram(service string) app {
	bin := "bin/" + service
	return app{Files: []string{bin}, Command: []string{bin}, Check: release.CheckNotify}
}

// guess looks what kind of project is in dir. It reads names, and package.json.
func guess(service, dir string) (app, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return app{}, err
	}
	defer root.Close()
	names, err := fs.Glob(root.FS(), "*")
	if err != nil {
		return app{}, err
	}
	switch {
	case slices.Contains(names, "go.mod"):
		return goApp(service, root), nil
	case slices.Contains(names, "package.json"):
		return nodeApp(root), nil
	case slices.ContainsFunc(names, isPython):
		return pythonApp(service, names), nil
	}
	return oneProgram(service), nil
}

func goApp(service string, root *os.Root) app {
	a := oneProgram(service)
	pkg := "."
	// Without a cgo dependency on the host's C library the program runs on any Linux.
	if commands, _ := fs.Glob(root.FS(), "cmd/*/*.go"); len(commands) > 0 {
		pkg = "./" + path.Dir(commands[0])
		if slices.ContainsFunc(commands, func(c string) bool { return path.Dir(c) == "cmd/"+service }) {
			pkg = "./cmd/" + service
		}
	}
	if strings.ContainsFunc(pkg, notPlain) {
		pkg = "."
	}
	a.Build = "CGO_ENABLED=0 GOOS=linux go build -trimpath -o bin/" + service + " " + pkg
	return a
}

// plainName is what can stand in a command line or a comment without quotes.
var plainName = regexp.MustCompile(`^[A-Za-z0-9._/@+-]+$`)

func notPlain(r rune) bool { return !plainName.MatchString(string(r)) }

func nodeApp(root *os.Root) app {
	return app{
		Files:   []string{"**"},
		Exclude: []string{".*", "**/.env*"},
		Command: []string{"node", nodeMain(root)},
		Check:   release.CheckTCP,
		Build:   "npm ci --omit=dev",
	}
}

// nodeMain finds the file that node starts: in scripts.start, in main, or under its usual names.
func nodeMain(root *os.Root) string {
	var p struct {
		Main    string            `json:"main"`
		Scripts map[string]string `json:"scripts"`
	}
	if b, err := root.ReadFile("package.json"); err == nil && len(b) <= MaxFileBytes {
		_ = json.Unmarshal(b, &p) // what cannot be read is not there: it is a guess
	}
	candidates := []string{p.Main, "server.js", "index.js", "app.js"}
	if f := strings.Fields(p.Scripts["start"]); len(f) == 2 && f[0] == "node" {
		candidates = append([]string{f[1]}, candidates...)
	}
	for _, c := range candidates {
		if info, err := root.Stat(c); err == nil && info.Mode().IsRegular() && plainName.MatchString(c) {
			return path.Clean(c)
		}
	}
	return "server.js"
}

func isPython(name string) bool { return strings.HasSuffix(name, ".py") && plainName.MatchString(name) }

func pythonApp(service string, names []string) app {
	main := names[slices.IndexFunc(names, isPython)]
	for _, usual := range []string{service + ".py", "main.py", "app.py", "server.py"} {
		if slices.Contains(names, usual) {
			main = usual
			break
		}
	}
	return app{
		Files:   []string{"**"},
		Exclude: []string{".*", "**/.env*", "**/__pycache__", "venv"},
		Command: []string{"python3", main},
		Check:   release.CheckTCP,
	}
}

var notService = regexp.MustCompile(`[^a-z0-9]+`)

// ServiceName guesses a service's name from its project's directory. It is always a valid one.
func ServiceName(dir string) string {
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	name := notService.ReplaceAllString(strings.ToLower(filepath.Base(dir)), "-")
	name = strings.TrimLeft(name, "-0123456789")
	name = strings.TrimRight(name[:min(len(name), 31)], "-")
	if release.CheckService(name) != nil {
		return "app"
	}
	return name
}

// WriteTemplate writes TemplateFor as dir's hotdeploy.toml. A file that is there stays: fs.ErrExist.
func WriteTemplate(service, dir string) (err error) {
	b, err := TemplateFor(service, dir)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, FileName), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}
