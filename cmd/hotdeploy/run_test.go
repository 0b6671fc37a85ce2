package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"
)

// output is what one run of the command came to.
type output struct {
	status         int
	stdout, stderr string
}

func command(t *testing.T, args ...string) output {
	t.Helper()
	var stdout, stderr bytes.Buffer
	status := run(t.Context(), args, strings.NewReader(""), &stdout, &stderr)
	return output{status, stdout.String(), stderr.String()}
}

func writeProject(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hotdeploy.toml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

const project = `service = "chat"
[pack]
files = ["run.sh"]
[run]
command = ["./run.sh"]
`

func TestRun_CommandLineThatIsWrong_IsUsage(t *testing.T) {
	good := writeProject(t, project)
	two := writeProject(t, project+"[targets.a]\nhosts = [\"web-1\", \"web-2\"]\n[targets.b]\nhosts = [\"web-3\"]\n")
	unknown := writeProject(t, project+"[soack]\n")
	t.Chdir(t.TempDir())
	for _, tt := range []struct {
		args  string
		words string
	}{
		{"foo", "unknown command"},
		{"push --bar", "unknown flag"},
		{"push one two", "at most 1 arg"},
		{"push web-1", "no hotdeploy.toml"},
		{"status web-1 --config /nowhere/hotdeploy.toml", "/nowhere/hotdeploy.toml"},
		{"push -c " + unknown + " web-1", "soack"},
		{"push -c " + good, "name a host"},
		{"push -c " + good + " --version 1 -- -oProxyCommand=evil", "does not begin with -"},
		{"push -c " + good + " --version 1 --release /tmp/x web-1", "leave out --version"},
		{"push --service chat --version 1 web-1", "nothing to pack"},
		{"status -c " + two, "say which one: a, b"},
		{"logs -c " + two + " a", "2 hosts"},
		{"status --watch -c " + two + " a", "2 hosts"},
		{"retire -c " + good + " web-1 seven", "not the number of a generation"},
		{"retire", "between 1 and 2 arg"},
		{"status --service ../evil web-1", "--service"},
		{"restart -c " + good + " --to 1 web-1", "unknown flag"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			got := command(t, strings.Fields(tt.args)...)
			if got.status != 2 || got.stdout != "" {
				t.Errorf("exit status %d, stdout %q; want 2 and nothing", got.status, got.stdout)
			}
			if !strings.HasPrefix(got.stderr, "hotdeploy: error: ") || !strings.Contains(got.stderr, tt.words) {
				t.Errorf("stderr %q, want an error with %q", got.stderr, tt.words)
			}
		})
	}
}

func TestRun_WrongWithJSON_TheAnswerIsOneObject(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, args := range []string{"push --json --bar", "retire --json --service chat web-1 seven", "status --json"} {
		got := command(t, strings.Fields(args)...)
		var a answer
		if err := json.Unmarshal([]byte(got.stdout), &a); err != nil || got.status != 2 || a.Outcome != "usage" || a.Error == nil {
			t.Errorf("%s: %+v (%v), want a usage outcome", args, got, err)
		}
	}
}

func TestHelp_EachVerbHasAnExampleAndItsExitCodes(t *testing.T) {
	root := new(app).rootCommand()
	for _, c := range root.Commands() {
		if c.Example == "" || !strings.Contains(c.Long, "Exit status:") || !strings.Contains(c.Long, "0 done") {
			t.Errorf("%s: help without an example or exit codes", c.Name())
		}
		if got := command(t, c.Name(), "--help"); got.status != 0 || got.stderr != "" || !strings.Contains(got.stdout, "Examples:") {
			t.Errorf("%s --help: %+v", c.Name(), got)
		}
	}
}

func TestCompletion_OffersTargetsAndHosts(t *testing.T) {
	path := writeProject(t, project+"[targets.production]\nhosts = [\"web-1\", \"web-2\"]\n")
	got := command(t, cobra.ShellCompNoDescRequestCmd, "push", "-c", path, "")
	for _, w := range []string{"production", "web-1", "web-2"} {
		if !strings.Contains(got.stdout, w+"\n") {
			t.Errorf("%q is not offered: %q", w, got.stdout)
		}
	}
	if got := command(t, "completion", "bash"); got.status != 0 || !strings.Contains(got.stdout, "hotdeploy") {
		t.Errorf("completion bash: %d, %d bytes", got.status, len(got.stdout))
	}
}

func TestInit_WritesAFileThatLoads_AndNeverOverAnother(t *testing.T) {
	t.Chdir(t.TempDir())
	if got := command(t, "init", "--service", "chat"); got.status != 0 {
		t.Fatalf("init: %+v", got)
	}
	if got := command(t, "status"); got.status != 2 || strings.Contains(got.stderr, "hotdeploy.toml:") {
		t.Errorf("the file does not load, or names a host: %+v", got)
	}
	before, err := os.ReadFile("hotdeploy.toml")
	if err != nil {
		t.Fatal(err)
	}
	if got := command(t, "init", "--service", "other"); got.status != 2 {
		t.Errorf("second init: %+v", got)
	}
	if after, err := os.ReadFile("hotdeploy.toml"); err != nil || string(after) != string(before) {
		t.Errorf("the file was changed (%v)", err)
	}
}

func TestPack_SameInputSameDigest_AndNothingIsOverwritten(t *testing.T) {
	path := writeProject(t, project)
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "run.sh"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	var digests []string
	for range 2 {
		out := filepath.Join(t.TempDir(), "release")
		got := command(t, "pack", "-c", path, "--version", "1", "--output", out, "--json")
		var a answer
		if err := json.Unmarshal([]byte(got.stdout), &a); err != nil || got.status != 0 || a.Path != out {
			t.Fatalf("pack: %+v, %v", got, err)
		}
		digests = append(digests, a.Release.Digest)
		if again := command(t, "pack", "-c", path, "--version", "2", "--output", out); again.status != 3 {
			t.Errorf("packed over a release: %+v", again)
		}
	}
	if digests[0] != digests[1] {
		t.Errorf("digests %v differ", digests)
	}
}

func TestPush_HostIsNotThere_ChangesNothingAndSaysSo(t *testing.T) {
	path := writeProject(t, project)
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "run.sh"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	got := command(t, "push", "-c", path, "--version", "1", "--json", "127.0.0.1:1")
	var a answer
	if err := json.Unmarshal([]byte(got.stdout), &a); err != nil || got.status != 3 {
		t.Fatalf("%+v, %v", got, err)
	}
	if len(a.Hosts) != 1 || a.Hosts[0].Outcome != "nothing changed" || a.Hosts[0].Error == nil || a.Error != nil {
		t.Errorf("answer %s", got.stdout)
	}
	for _, w := range []string{"hotdeploy: error: 127.0.0.1:1: ", "unreachable", "hotdeploy: state: ", "hotdeploy: hint:  try  ssh 127.0.0.1:1"} {
		if !strings.Contains(got.stderr, w) {
			t.Errorf("%q is missing in %q", w, got.stderr)
		}
	}
}

func TestInterrupt_FirstCancels_SecondLeaves(t *testing.T) {
	first, leave, stop := interruptible(context.Background())
	defer stop()
	interrupt := func() {
		t.Helper()
		if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
	}
	interrupt()
	<-first.Done()
	if leave.Err() != nil {
		t.Fatal("the first ^C left already")
	}
	interrupt()
	<-leave.Done()
}
