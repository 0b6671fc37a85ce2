package release

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

var emptySum = Digest(nil)

// file and link make entries of a manifest.
func file(path string) File { return File{Path: path, Mode: 0o644, SHA256: emptySum} }
func prog(path string) File { return File{Path: path, Mode: 0o755, SHA256: emptySum} }
func link(path, target string) File {
	return File{Path: path, Link: target}
}

// manifest is a valid one with these files besides its program, in the right order.
func manifest(files ...File) *Manifest {
	m := &Manifest{Format: 1, Service: "chat", Version: "1.0", Platform: Platform{"linux", "amd64"}, Spec: goodSpec()}
	m.Files = append(files, prog("bin/app"))
	slices.SortStableFunc(m.Files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return m
}

func TestManifestValidate_RefusesWhatIsHostile(t *testing.T) {
	deep := strings.Repeat("a/", 64) + "a"
	for _, c := range []struct {
		name string
		m    *Manifest
		want string
	}{
		{"climbs", manifest(file("../x")), `files: "../x": has ".." in it`},
		{"climbs inside", manifest(file("a/../../x")), `has ".." in it`},
		{"climbs at the end", manifest(file("a/..")), `has ".." in it`},
		{"only climbs", manifest(file("..")), `has ".." in it`},
		{"absolute", manifest(file("/etc/passwd")), `files: "/etc/passwd": is absolute`},
		{"not clean", manifest(file("a//b")), `is not clean: write "a/b"`},
		{"not clean, dot", manifest(file("./a")), `is not clean: write "a"`},
		{"not clean, slash", manifest(file("a/")), `is not clean`},
		{"the top itself", manifest(file(".")), `is the release itself`},
		{"no name", manifest(file("")), `files: "": is empty`},
		{"NUL", manifest(file("a\x00b")), `has a NUL byte`},
		{"climbs, not UTF-8", manifest(file("\xff/../../x")), `files: "\xff/../../x": has ".." in it`},
		{"long", manifest(file(strings.Repeat("a/", 512) + "a")), `is longer than 1024 bytes`},
		{"long name", manifest(file(strings.Repeat("a", 256))), `has a name longer than 255`},
		{"deep", manifest(file(deep)), `is more than 64 directories deep`},

		{"twice", manifest(file("a"), file("a")), `files: "a": comes twice, or not in its order`},
		{"not sorted", &Manifest{Format: 1, Service: "a", Version: "1", Spec: goodSpec(), Files: []File{prog("bin/app"), file("a")}}, `files: "a": comes twice, or not in its order`},
		{"below a file", manifest(file("a"), file("a/b")), `files: "a/b": lies below "a"`},
		{"below a file, far", manifest(file("a"), file("a-"), file("a/b/c")), `files: "a/b/c": lies below "a"`},
		{"below a symlink", manifest(file("d/x"), link("l", "d"), file("l/y")), `files: "l/y": lies below "l"`},
		{"a symlink below a symlink", manifest(file("d/x"), link("l", "d"), link("l/y", "x")), `lies below "l"`},

		{"link climbs", manifest(link("l", "../x")), `files: "l": the symlink to "../x" leaves the release`},
		{"link climbs from below", manifest(link("a/l", "../../x")), `leaves the release`},
		{"link climbs and comes back", manifest(link("l", "../files/bin/app")), `leaves the release`},
		{"link absolute", manifest(link("l", "/etc/passwd")), `files: "l": is absolute`},
		{"link to nothing", manifest(link("l", "x")), `leads to "x", which is not in the release`},
		{"link through a file", manifest(file("f"), link("l", "f/../bin/app")), `goes through "f", which is not a directory`},
		{"link to itself", manifest(link("l", "l")), `passes too many symlinks`},
		{"loop", manifest(link("k", "l"), link("l", "k")), `passes too many symlinks`},
		{"chain that leaves", manifest(link("a/up", ".."), link("l", "a/up/../x")), `files: "l": the symlink to "a/up/../x" leaves the release`},
		{"chain of chains that leaves", manifest(link("a/b/c", "../.."), link("a/d", "b/c/.."), file("a/x")), `leaves the release`},
		{"through the shared path", manifest(link("l", "data/../../env")), `goes through the shared path "data" and out again`},
		{"through a link to the shared path", manifest(link("k", "data/x"), link("l", "k/../../../env")), `goes through the shared path "data/x" and out again`},
		{"link climbs, not UTF-8", manifest(link("l", "\xff/../../x")), `leads to "\xff", which is not in the release`},
		{"shared path with a line end", withSpec(manifest(), func(s *Spec) { s.Run.Shared = []string{"a\nb"} }), `has a control character`},
		{"shared path not UTF-8", withSpec(manifest(), func(s *Spec) { s.Run.Shared = []string{"a\xff"} }), `is not valid UTF-8`},
		{"NUL in a link", manifest(link("l", "bin/app\x00/../..")), `has a NUL byte`},
		{"link with a mode", manifest(File{Path: "l", Link: "bin", Mode: 0o755}), `is a symlink: it has no mode`},
		{"link with content", manifest(File{Path: "l", Link: "bin", SHA256: emptySum}), `is a symlink: it has no mode`},
		{"below the shared path", manifest(file("data/x")), `files: "data/x": lies below "data"`},
		{"at the shared path", manifest(file("data")), `run.shared: "data": the release has files there`},
		{"shared path below a file", withSpec(manifest(file("v")), func(s *Spec) { s.Run.Shared = []string{"v/data"} }), `run.shared: "v/data": lies below "v"`},
		{"shared path below a symlink", withSpec(manifest(link("v", "bin")), func(s *Spec) { s.Run.Shared = []string{"v/data"} }), `run.shared: "v/data": lies below "v"`},

		{"setuid", manifest(File{Path: "a", Mode: 0o4755, SHA256: emptySum}), `files: "a": has mode 04755: must be 0644 or 0755`},
		{"writable", manifest(File{Path: "a", Mode: 0o666, SHA256: emptySum}), `must be 0644 or 0755`},
		{"no mode", manifest(File{Path: "a", SHA256: emptySum}), `must be 0644 or 0755`},
		{"negative size", manifest(File{Path: "a", Mode: 0o644, Size: -1, SHA256: emptySum}), `has size -1`},
		{"huge size", manifest(File{Path: "a", Mode: 0o644, Size: math.MaxInt64, SHA256: emptySum}), `has size 9223372036854775807`},
		{"sizes that overflow", manifest(sized("a", MaxTotalBytes, "1"), sized("b", MaxTotalBytes, "2")), `files: "b": here the sum of sizes is beyond`},
		{"one digest, two sizes", manifest(File{Path: "a", Mode: 0o644, Size: 1, SHA256: emptySum}), `another file with the same digest has`},
		{"no digest", manifest(File{Path: "a", Mode: 0o644}), `a digest has 64`},
		{"digest that is a path", manifest(File{Path: "a", Mode: 0o644, SHA256: "../../../../etc/passwd"}), `a digest has 64`},
		{"digest in capitals", manifest(File{Path: "a", Mode: 0o644, SHA256: strings.ToUpper(emptySum)}), `a digest has 64`},

		{"service", with(manifest(), func(m *Manifest) { m.Service = "../x" }), `service: "../x": a service's name`},
		{"service with a line end", with(manifest(), func(m *Manifest) { m.Service = "chat\n" }), `service: "chat\n"`},
		{"version", with(manifest(), func(m *Manifest) { m.Version = "1/2" }), `version: "1/2": a version has`},
		{"version climbs", with(manifest(), func(m *Manifest) { m.Version = "1..2" }), `version: "1..2"`},
		{"version is an option", with(manifest(), func(m *Manifest) { m.Version = "-rf" }), `version: "-rf"`},
		{"no version", with(manifest(), func(m *Manifest) { m.Version = "" }), `version: ""`},
		{"no format", with(manifest(), func(m *Manifest) { m.Format = 0 }), `format: 0`},
		{"platform", with(manifest(), func(m *Manifest) { m.Arch = "amd64\n" }), `must be names such as linux`},
		{"interpreter", with(manifest(), func(m *Manifest) { m.Interpreters = []string{"./sh"} }), `interpreters: "./sh": must be a bare name`},
		{"interpreter climbs", with(manifest(), func(m *Manifest) { m.Interpreters = []string{"/bin/../sh"} }), `interpreters: "/bin/../sh"`},
		{"interpreter ..", with(manifest(), func(m *Manifest) { m.Interpreters = []string{".."} }), `interpreters: "..": must be a program`},
		{"interpreters", with(manifest(), func(m *Manifest) { m.Interpreters = make([]string, 17) }), `interpreters: 17 of them`},
		{"spec", withSpec(manifest(), func(s *Spec) { s.Soak.Duration = -1 }), `soak.duration: must not be negative`},
		{"long socket in the run directory", withSpec(manifest(), func(s *Spec) { s.Listeners[1].Address = strings.Repeat("a", 100) }), `listen[1].address: "/run/chat/aaa`},
		{"the control socket", withSpec(manifest(), func(s *Spec) { s.Listeners[1].Address = "control.sock" }), `is hotdeploy's own`},
		{"the control socket, absolute", withSpec(manifest(), func(s *Spec) { s.Listeners[1].Address = "/run/chat/control.sock" }), `is hotdeploy's own`},

		{"command missing", withSpec(manifest(), func(s *Spec) { s.Run.Command[0] = "bin/nope" }), `run.command: "bin/nope": is not in the release: build it, and list it in pack.files`},
		{"command climbs", withSpec(manifest(), func(s *Spec) { s.Run.Command[0] = "../../bin/sh" }), `run.command: "../../bin/sh": leaves the release`},
		{"command is a directory", withSpec(manifest(), func(s *Spec) { s.Run.Command[0] = "./bin" }), `run.command: "./bin": is a directory`},
		{"command not executable", withSpec(manifest(file("bin/x")), func(s *Spec) { s.Run.Command[0] = "bin/x" }), `run.command: "bin/x": not executable: chmod +x and pack again`},
		{"command not executable, by a link", withSpec(manifest(file("bin/x"), link("y", "bin/x")), func(s *Spec) { s.Run.Command[0] = "./y" }), `run.command: "./y": not executable`},
		{"command in the shared path", withSpec(manifest(), func(s *Spec) { s.Run.Command[0] = "data/x" }), `is in a shared path`},
		{"ready command missing", withSpec(manifest(), func(s *Spec) { s.Ready.Probe = Probe{Check: CheckCommand, Command: []string{"bin/nope"}} }), `ready.command: "bin/nope"`},
		{"health command missing", withSpec(manifest(), func(s *Spec) { s.Health.Probe = Probe{Check: CheckCommand, Command: []string{"bin/nope"}} }), `health.command: "bin/nope"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.m.Validate()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
			if _, err := Encode(c.m); err == nil {
				t.Error("Encode wrote it")
			}
			if b, err := json.Marshal(c.m); err == nil {
				if _, err := Decode(b); err == nil {
					t.Error("Decode read it")
				}
			}
		})
	}
}

func with(m *Manifest, f func(*Manifest)) *Manifest { f(m); return m }
func withSpec(m *Manifest, f func(*Spec)) *Manifest { f(&m.Spec); return m }
func sized(path string, size int64, content string) File {
	return File{Path: path, Mode: 0o644, Size: size, SHA256: Digest([]byte(content))}
}

func TestManifestValidate_TakesWhatIsOrdinary(t *testing.T) {
	for _, c := range []struct {
		name string
		m    *Manifest
	}{
		{"no files but the program", manifest()},
		{"names that differ in case", manifest(file("A"), file("a"))},
		{"odd names", manifest(file(" "), file("..."), file("..a"), file("a:b"), file("ä€"), file("-rf"), file("[id].js"))},
		{"names that are hardly any", manifest(file("a\nb"), file("a\x1b[2Jb"), file(`..\x`), file("\xff/\xfe"), file("\xc3\x28"), file("\ufffd"), file("\r"), file(`"`))},
		{"links to such", manifest(file("\xff/\n"), link("a", "\xff"), link("b", "\xff/\n"), link("\xfe", "a/\n"))},
		{"a name that another one begins with", manifest(file("a"), file("a-b"), file("a.b/c"), file("a0/b"))},
		{"link to a file", manifest(link("app", "bin/app"))},
		{"link to a directory", manifest(link("b", "bin"), link("c/d", "../bin/"))},
		{"link to the top", manifest(link("c/top", ".."), link("self", "."))},
		{"link through links", manifest(link("c/top", ".."), link("b", "c/top/bin"), link("x", "b/app"), link("y", "b/../bin/./app"))},
		{"link to the shared path", manifest(link("d", "data"), link("e", "data/x/y"), link("f", "d/z"))},
		{"a long chain", manifest(chain(40)...)},
		{"command by a link", withSpec(manifest(link("run", "b/app"), link("b", "bin")), func(s *Spec) { s.Run.Command[0] = "./run" })},
		{"command on the host", withSpec(manifest(), func(s *Spec) { s.Run.Command[0] = "node" })},
		{"absolute command", withSpec(manifest(), func(s *Spec) { s.Run.Command[0] = "/usr/bin/node" })},
		{"shared path where the release has a directory", withSpec(manifest(file("v/x")), func(s *Spec) { s.Run.Shared = []string{"v/data"} })},
		{"any machine", with(manifest(), func(m *Manifest) { m.Platform = Platform{} })},
		{"interpreters", with(manifest(), func(m *Manifest) { m.Interpreters = []string{"node", "/lib64/ld-linux-x86-64.so.2"} })},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := c.m.Validate(); err != nil {
				t.Fatal(err)
			}
			b, err := Encode(c.m)
			if err != nil {
				t.Fatal(err)
			}
			m, err := Decode(b)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := Encode(m); err != nil || !bytes.Equal(again, b) {
				t.Errorf("%s\nbecame\n%s, %v", b, again, err)
			}
		})
	}
}

// chain is n symlinks in a row to the program.
func chain(n int) []File {
	files := []File{link("l00", "bin/app")}
	for i := 1; i < n; i++ {
		files = append(files, link(fmt.Sprintf("l%02d", i), fmt.Sprintf("l%02d", i-1)))
	}
	return files
}

func TestManifestValidate_AChainIsAsLongAsTheKernelFollows(t *testing.T) {
	if err := manifest(chain(41)...).Validate(); err == nil || !strings.Contains(err.Error(), "too many symlinks") {
		t.Errorf("got %v", err)
	}
	// Each link passes two others twice: without counting them the walk would take 2^30 steps.
	files := []File{link("l00", "bin")}
	for i := 1; i < 30; i++ {
		files = append(files, link(fmt.Sprintf("l%02d", i), fmt.Sprintf("l%02d/../l%02d", i-1, i-1)))
	}
	if err := manifest(files...).Validate(); err == nil || !strings.Contains(err.Error(), "too many symlinks") {
		t.Errorf("got %v", err)
	}
}

// Refusing the worst must not take much longer than reading it: this one would take hours if anything were walked twice.
func TestManifestValidate_StaysQuickWithTheWorstThatFits(t *testing.T) {
	many := make([]File, MaxFiles+1)
	for i := range many {
		many[i] = file(fmt.Sprintf("f%06d", i))
	}
	m := manifest()
	m.Files = many
	if err := m.Validate(); err == nil || !strings.Contains(err.Error(), "files: 100001 of them") {
		t.Errorf("got %v", err)
	}
	deep := strings.Repeat("d/", 50)
	for i := range many {
		many[i] = link(fmt.Sprintf("%s%06d", deep, i), strings.Repeat("../", 50)+deep+fmt.Sprintf("%06d", max(i-30*(i%2), 0)))
	}
	m.Files = append([]File{prog("bin/app")}, many[:MaxFiles-1]...)
	if err := m.Validate(); err == nil {
		t.Error("links of links of links were taken")
	}
}

func TestDecode_RefusesWhatIsNotOurs(t *testing.T) {
	good, err := Encode(manifest())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, text, want string }{
		{"nothing", "", "manifest: unexpected end of JSON input"},
		{"no JSON", "hello", "manifest: invalid character"},
		{"null", "null", "it is no object"},
		{"an array", "[]", "manifest: json: cannot unmarshal array"},
		{"unknown field", strings.Replace(string(good), `{"arch"`, `{"aaa":1,"arch"`, 1), `unknown field "aaa": made by a newer hotdeploy?`},
		{"unknown field inside", strings.Replace(string(good), `"soak":{`, `"soak":{"x":1,`, 1), `unknown field "x": made by a newer hotdeploy?`},
		{"more behind", string(good) + "{}", "after top-level value"},
		{"more space behind", string(good) + "\n", "not in its canonical form"},
		{"field twice", strings.Replace(string(good), `{"arch"`, `{"arch":"x","arch"`, 1), "not in its canonical form"},
		{"field in capitals", strings.Replace(string(good), `"arch"`, `"ARCH"`, 1), `unknown field "ARCH"`},
		{"files that are none", strings.Replace(string(good), `"files":[`, `"files":{},"files":[`, 1), "files: it is no array"},
		{"files twice", strings.Replace(string(good), `"files":[`, `"files":[],"files":[`, 1), "not in its canonical form"},
		{"spaces", strings.Replace(string(good), `,`, `, `, 1), "not in its canonical form"},
		{"duration in another form", strings.Replace(string(good), `"24h0m0s"`, `"24h"`, 1), "not in its canonical form"},
		{"huge number", `{"format":1e400}`, "manifest: json: cannot unmarshal number"},
		{"long number", `{"format":99999999999999999999}`, "manifest: json: cannot unmarshal number"},
		{"base64 of what is UTF-8", strings.Replace(string(good), `"path":"bin/app"`, `"path64":"YmluL2FwcA=="`, 1), "not in its canonical form"},
		{"a path twice", strings.Replace(string(good), `"path":"bin/app"`, `"path":"bin/app","path64":"/2E="`, 1), "is not in the release"},
		{"base64 that is none", strings.Replace(string(good), `"path":"bin/app"`, `"path64":"?"`, 1), "illegal base64"},
		{"nested", strings.Repeat("[", 100_000), "exceeded max depth"},
		{"huge", strings.Repeat(" ", MaxManifestBytes+1), "more than the 33554432 allowed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Decode([]byte(c.text))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}

func TestDecode_ANewerFormatIsToldAsSuch(t *testing.T) {
	_, err := Decode([]byte(`{"format":2,"something":{"new":true}}`))
	if !errors.Is(err, ErrNewerFormat) || !strings.Contains(err.Error(), "hotdeploy setup") {
		t.Errorf("got %v", err)
	}
	if err := with(manifest(), func(m *Manifest) { m.Format = 2 }).Validate(); !errors.Is(err, ErrNewerFormat) {
		t.Errorf("Validate: got %v", err)
	}
}

// The bytes are a promise: releases on hosts are named by their digest.
func TestEncode_TheBytesNeverChange(t *testing.T) {
	m := manifest(link("app", "bin/app"), file("a <&> \u2028 ä"))
	m.Interpreters = []string{"/lib64/ld-linux-x86-64.so.2"}
	b, err := Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	const want = "1bec033ae6dcf6494d1afdc5320d3630178da1635976fb7fa8ffe74584038156"
	if got := Digest(b); got != want {
		t.Errorf("digest %s, want %s, of\n%s", got, want, b)
	}
	b, err = Encode(manifest(file("line\nend"), link("\xff", "bin/app"), file("\xfe/x"), link("z", "\xfe")))
	if err != nil {
		t.Fatal(err)
	}
	const oddly = "cae2f5c92ef59f02be05364f86a38ae95c41acec611a5fc6df4215288f84572b"
	if got := Digest(b); got != oddly {
		t.Errorf("digest %s, want %s, of\n%s", got, oddly, b)
	}
	if !bytes.HasPrefix(b, []byte(`{"arch":"amd64","files":[{`)) || !bytes.HasSuffix(b, []byte("\n")) || bytes.Count(b, []byte("\n")) != 1 {
		t.Errorf("not one line of sorted JSON: %s", b)
	}
}

func TestEncode_NoFilesAndNilFilesAreTheSame(t *testing.T) {
	m := manifest()
	m.Spec.Run.Command = []string{"node"}
	m.Files = nil
	a, errA := Encode(m)
	m.Files = []File{}
	b, errB := Encode(m)
	if errA != nil || errB != nil || !bytes.Equal(a, b) {
		t.Errorf("%s, %v\n%s, %v", a, errA, b, errB)
	}
}

func TestEncode_WhatIsTooLongIsRefused(t *testing.T) {
	files := make([]File, 0, 33_000)
	long := strings.Repeat(strings.Repeat("x", 245)+"/", 4)
	for i := range cap(files) {
		files = append(files, file(fmt.Sprintf("c/%s%06d", long, i)))
	}
	if _, err := Encode(manifest(files...)); err == nil || !strings.Contains(err.Error(), "pack fewer files") {
		t.Errorf("got %v", err)
	}
}
