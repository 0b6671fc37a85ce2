package supervisor

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

// plant puts, wherever the app's user may, links that lead to target: names that the daemon writes, reads, lists and removes.
func plant(t *testing.T, r *rig, target string) {
	t.Helper()
	file := filepath.Join(target, "precious")
	for link, to := range map[string]string{
		"run/running.json.new":                      file,
		"run/stop":                                  file,
		"run/await.lock":                            file,
		"root/.hotdeploy-link":                      target,
		"root/incoming/.hotdeploy-link":             target,
		"root/releases/.hotdeploy-link":             target,
		"root/state/.hotdeploy-link":                file,
		"root/shared/.hotdeploy-link":               target,
		"root/shared/data":                          target,
		"root/tmp/link":                             target,
		"root/releases/9":                           target,
		"root/incoming/" + strings.Repeat("ab", 32): target,
	} {
		path := filepath.Join(r.dir, link)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, path); err != nil {
			t.Fatal(err)
		}
	}
}

// tree is everything about a folder that somebody could have changed.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content := []byte(nil)
		if d.Type().IsRegular() {
			content, err = os.ReadFile(path)
		}
		st := info.Sys().(*syscall.Stat_t)
		fmt.Fprintf(&b, "%s %s %d %d %v %q\n", path, info.Mode(), st.Uid, st.Nlink, info.ModTime(), content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestPlanted_LinksLeadTheDaemonNowhere(t *testing.T) {
	r := newRig(t)
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "precious"), []byte("precious"), 0o640); err != nil {
		t.Fatal(err)
	}
	before := tree(t, outside)
	r.push("1")
	plant(t, r, outside)
	r.push("2")
	if err := Announce(r.cfg); err != nil {
		t.Error(err)
	}
	os.Remove(announcement(r.cfg.RunDir))
	if u := r.upgrade(api.KindRollback, "1"); u.Outcome != api.Done {
		t.Errorf("%s: %+v", u.Outcome, u.Error)
	}
	r.stop()
	os.Remove(filepath.Join(r.cfg.RunDir, "await.lock"))
	r.start()
	r.push("3")
	if after := tree(t, outside); after != before {
		t.Errorf("it was\n%s\nis\n%s", before, after)
	}
	if _, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindPush, Version: "9", By: "tester"}); err == nil {
		t.Error("a link was taken for a release")
	}
}

// A file of ours that became a link while we run: what cannot be done without following it is told, and what serves goes on.
func TestPlanted_OurFilesBecomeLinks_NothingIsWrittenThere(t *testing.T) {
	for _, name := range []string{"root/state/history.jsonl", "root/state/supervisor.json", "root/current", "root/env", "root/releases", "root/incoming", "root/state", "run/running.json"} {
		t.Run(strings.ReplaceAll(name, "/", " "), func(t *testing.T) {
			r := newRig(t)
			r.push("1")
			outside := t.TempDir()
			target := filepath.Join(outside, filepath.Base(name))
			path := filepath.Join(r.dir, name)
			if info, err := os.Stat(path); err == nil && info.IsDir() && name != "root/current" {
				if err := os.Mkdir(target, 0o755); err != nil {
					t.Fatal(err)
				}
			} else if err := os.WriteFile(target, []byte("SECRET=1\n"), 0o640); err != nil {
				t.Fatal(err)
			}
			before := tree(t, outside)
			aside := path + ".aside"
			if err := os.Rename(path, aside); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
			if err := os.Symlink(target, path); err != nil {
				t.Fatal(err)
			}
			said := "done"
			if err := r.tryInstall("2"); err != nil {
				said = err.Error()
			} else if u := r.upgrade(api.KindPush, "2"); u.Outcome != api.Done {
				said = fmt.Sprintf("%s: %s", u.Outcome, u.Error.Message)
			}
			t.Log(said)
			if after := tree(t, outside); after != before {
				t.Errorf("it was\n%s\nis\n%s", before, after)
			}
			if st := r.status(); st.State != api.StateServing {
				t.Errorf("%s", st.Text)
			}
			os.Remove(path)
			if err := os.Rename(aside, path); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
		})
	}
}
