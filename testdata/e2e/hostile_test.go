package e2e

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

const emptySHA = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

type object = map[string]any

func emptyFile(path string) object   { return object{"path": path, "mode": 0o644, "sha256": emptySHA} }
func symlink(path, to string) object { return object{"path": path, "link": to} }

// Files that a hostile release has besides its harmless ones.
var hostileFiles = map[string][]object{
	"parent":                           {emptyFile("../evil")},
	"parent further down":              {emptyFile("lib/../../evil")},
	"absolute":                         {emptyFile("/tmp/evil")},
	"through a symlink to a folder":    {symlink("lib", "../../../.."), emptyFile("lib/evil")},
	"through a symlink inside":         {symlink("lib", "bin"), emptyFile("lib/evil")},
	"symlink to an absolute path":      {symlink("evil", "/etc/passwd")},
	"symlink that climbs":              {symlink("evil", "../../../../etc/passwd")},
	"symlink over symlinks that climb": {symlink("a", "b/../.."), symlink("b", "c"), emptyFile("c/evil")},
	"below a file":                     {emptyFile("evil"), emptyFile("evil/evil")},
	"a NUL":                            {emptyFile("evil\x00")},
	"not clean":                        {emptyFile("lib//evil")},
	"dot":                              {emptyFile(".")},
	"empty":                            {emptyFile("")},
	"twice":                            {emptyFile("evil"), emptyFile("evil")},
	"setuid":                           {{"path": "evil", "mode": 0o4755, "sha256": emptySHA}},
	"digest that climbs":               {{"path": "evil", "mode": 0o644, "sha256": "../../evil", "size": 4}},
	"negative size":                    {{"path": "evil", "mode": 0o644, "sha256": strings.Repeat("0", 64), "size": -1}},
	"more than a disk":                 {{"path": "evil", "mode": 0o644, "sha256": strings.Repeat("0", 64), "size": 1 << 62}},
	"100,001 files":                    many(100_001),
}

// Other keys of a hostile manifest; in spec those of its spec.
var hostileKeys = map[string]object{
	"version that climbs":       {"version": "../../evil"},
	"version that is hidden":    {"version": ".evil"},
	"service of another":        {"service": "other"},
	"newer format":              {"format": 99},
	"unknown key":               {"evil": true},
	"socket over the control":   {"spec": object{"listen": []any{object{"name": "x", "network": "unix", "address": "control.sock", "mode": "0660"}}}},
	"socket that climbs":        {"spec": object{"listen": []any{object{"name": "x", "network": "unix", "address": "../evil.sock", "mode": "0660"}}}},
	"shared path that climbs":   {"spec": object{"run": object{"command": []string{"bin/wsecho"}, "stop_timeout": "1s", "shared": []string{"../../etc"}}}},
	"start command that climbs": {"spec": object{"run": object{"command": []string{"../../../bin/sh"}, "stop_timeout": "1s"}}},
	"variable of the loader":    {"spec": object{"run": object{"command": []string{"bin/wsecho"}, "stop_timeout": "1s", "env": object{"A=B": "1"}}}},
}

func many(n int) []object {
	files := make([]object, n)
	for i := range files {
		files[i] = emptyFile(fmt.Sprintf("f%06d", i))
	}
	return files
}

// What no hotdeploy would send, straight to the control socket: refused before anything is written anywhere.
func TestManifest_ThatClimbsOutOfTheRelease_IsRefused(t *testing.T) {
	s := newService(t, common())
	s.push("1").want(0)
	good := s.manifest()
	snapshot := func() string {
		return s.run(`find / -xdev -name '*evil*' -not -path '/proc/*' -not -path '/usr/*'; ls -lA --time-style=+ /srv/NAME /srv/NAME/incoming /srv/NAME/releases /run/NAME /tmp | grep -v ^total`)
	}
	before := snapshot()
	refused := func(name string, m object) {
		t.Helper()
		_, err := s.plan(m)
		if !errors.Is(err, api.ErrManifest) || strings.Contains(err.Error(), "canonical") {
			t.Errorf("%s: %.200v, want bad-manifest for what is in it", name, err)
		}
		t.Logf("%s: %.160v", name, err)
	}
	for _, name := range slices.Sorted(maps.Keys(hostileFiles)) {
		refused(name, with(good, object{"files": sorted(good["files"].([]any), hostileFiles[name])}))
	}
	for _, name := range slices.Sorted(maps.Keys(hostileKeys)) {
		changed := maps.Clone(hostileKeys[name])
		if spec, ok := changed["spec"].(object); ok {
			changed["spec"] = with(good["spec"].(object), spec)
		}
		refused(name, with(good, changed))
	}
	for name, raw := range map[string]string{
		"nothing": "", "not JSON": "files", "an array": "[]", "two objects": "{}{}", "deep": strings.Repeat("[", 100_000),
	} {
		if _, err := s.planRaw([]byte(raw)); !errors.Is(err, api.ErrManifest) {
			t.Errorf("%s: %.200v, want bad-manifest", name, err)
		}
	}
	if _, err := s.planRaw(bytes.Repeat([]byte(" "), 33<<20)); err == nil {
		t.Error("33 MiB of nothing are taken for a manifest")
	}
	for _, digest := range []string{"..", "../../releases/1", strings.Repeat("0", 64), "%2e%2e%2f"} {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		if _, err := s.daemon.Complete(ctx, digest); err == nil {
			t.Errorf("complete %q: no error", digest)
		}
		cancel()
	}
	if after := snapshot(); after != before {
		t.Errorf("something was written:\n%s\nbefore:\n%s", after, before)
	}
	if got := s.consistent(); got != "1" {
		t.Errorf("release %s serves", got)
	}
	if _, err := s.plan(good); err != nil { // or none of the above was refused for what is wrong with it
		t.Errorf("the harmless one: %v", err)
	}
}

// manifest is that of release 1, as a release 2.
func (s *service) manifest() object {
	s.t.Helper()
	d := json.NewDecoder(strings.NewReader(s.run("cat /srv/NAME/releases/1/manifest.json")))
	d.UseNumber()
	var m object
	must(s.t, d.Decode(&m))
	m["version"] = "2"
	return m
}

func with(m, changed object) object {
	m = maps.Clone(m)
	maps.Copy(m, changed)
	return m
}

// sorted adds files to those of a manifest, in the order that a manifest must have.
func sorted(has []any, files []object) []any {
	all := slices.Clone(has)
	for _, f := range files {
		all = append(all, f)
	}
	slices.SortStableFunc(all, func(a, b any) int { return cmp.Compare(a.(object)["path"].(string), b.(object)["path"].(string)) })
	return all
}

// plan sends a manifest in the one form in which manifests are taken.
func (s *service) plan(m object) (api.UploadPlan, error) {
	s.t.Helper()
	var raw bytes.Buffer
	e := json.NewEncoder(&raw)
	e.SetEscapeHTML(false)
	must(s.t, e.Encode(m))
	return s.planRaw(raw.Bytes())
}

func (s *service) planRaw(raw []byte) (api.UploadPlan, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return s.daemon.PlanUpload(ctx, raw)
}

// In incoming/ whoever may push may write: what lies there instead of a file is neither followed nor waited for.
func TestUpload_WhatIsNoFile_IsNotFollowed(t *testing.T) {
	s := newService(t, common())
	s.push("1").want(0)
	m := s.manifest()
	const secret = "only for the service\n"
	s.run("printf '" + secret + "' > /srv/NAME/shared/secret; chown NAME: /srv/NAME/shared/secret; chmod 600 /srv/NAME/shared/secret")
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte(secret)))
	m["files"] = sorted(m["files"].([]any), []object{{"path": "stolen", "mode": 0o644, "sha256": sum, "size": len(secret)}})
	plan, err := s.plan(m)
	must(t, err)
	part := plan.Dir + "/" + sum
	for name, cmd := range map[string]string{
		"a symlink out of the folder": "ln -s /srv/NAME/shared/secret " + part,
		"a fifo":                      "mkfifo " + part,
		"a directory":                 "mkdir " + part,
	} {
		s.run("cd " + plan.Dir + " && rm -rf " + sum + " && " + cmd)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		_, err := s.daemon.Complete(ctx, plan.Digest)
		cancel()
		if !errors.Is(err, api.ErrIncomplete) && !errors.Is(err, api.ErrDigest) {
			t.Errorf("%s: %v", name, err)
		}
		t.Logf("%s: %v", name, err)
	}
	if is := s.look(); !slices.Equal(is.releases, []string{"1"}) || s.consistent() != "1" {
		t.Errorf("%+v", is)
	}
}
