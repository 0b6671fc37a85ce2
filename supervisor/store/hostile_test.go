package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

// Whoever may upload is in the service's group and may do in incoming/ whatever he likes.

func TestHostileParts(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	write(t, secret, "tool one")
	for name, put := range map[string]func(t *testing.T, part string){
		"a symlink to the right content outside": func(t *testing.T, part string) { must(t, os.Symlink(secret, part)) },
		"a symlink inside the folder": func(t *testing.T, part string) {
			must(t, os.Symlink("../../../state/supervisor.json", part))
		},
		"a symlink to itself": func(t *testing.T, part string) { must(t, os.Symlink(filepath.Base(part), part)) },
		"a pipe":              func(t *testing.T, part string) { must(t, syscall.Mkfifo(part, 0o666)) },
		"a socket": func(t *testing.T, part string) {
			must(t, syscall.Mknod(part, syscall.S_IFSOCK|0o666, 0))
		},
		"a directory": func(t *testing.T, part string) {
			must(t, os.MkdirAll(filepath.Join(part, "deep", "er"), 0o755))
			write(t, filepath.Join(part, "deep", "file"), "x")
		},
		"too large":               func(t *testing.T, part string) { write(t, part, "tool one and more") },
		"endless":                 func(t *testing.T, part string) { must(t, os.Truncate(touch(t, part), 1<<40)) },
		"the right size, no more": func(t *testing.T, part string) { write(t, part, "tool 0ne") },
		"the right size, and the group may write": func(t *testing.T, part string) {
			write(t, part, "tool 0ne")
			must(t, os.Chmod(part, 0o664))
		},
		"more than the right content, and the group may write": func(t *testing.T, part string) {
			write(t, part, "tool one and more")
			must(t, os.Chmod(part, 0o664))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, t.TempDir())
			digest := send(t, s, one)
			p := part(s, digest, "tool one")
			must(t, os.Remove(p))
			put(t, p)
			if _, err := s.Complete(t.Context(), digest); !errors.Is(err, api.ErrDigest) || !strings.Contains(err.Error(), "bin/tool") {
				t.Fatalf("complete: %v", err)
			}
			if exists(p) {
				t.Error("the bad part is still there")
			}
			put(t, p)
			if missing, _ := plan(t, s, one); len(missing) != 1 {
				t.Errorf("missing: %v", missing)
			}
			if exists(p) {
				t.Error("plan left the bad part there")
			}
			push(t, s, one)
			whole(t, s, "1")
			if got, err := os.ReadFile(secret); err != nil || string(got) != "tool one" {
				t.Errorf("the file outside: %q, %v", got, err)
			}
		})
	}
}

func touch(t *testing.T, name string) string { write(t, name, ""); return name }

func TestAPartThatIsAlsoAnotherFileOfOursIsCopied(t *testing.T) {
	s := open(t, t.TempDir())
	digest := send(t, s, one)
	other := filepath.Join(s.Dir(), "state", "other")
	must(t, os.Link(part(s, digest, "tool one"), other))
	_, err := s.Complete(t.Context(), digest)
	must(t, err)
	fi, err := os.Stat(other)
	if err != nil || fi.Mode() != 0o644 || fi.Sys().(*syscall.Stat_t).Nlink != 1 {
		t.Errorf("the other file: %v, %v", fi.Mode(), err)
	}
	write(t, other, "rewritten")
	whole(t, s, "1")
}

func TestAPartThatTheGroupMayWriteToIsCopied(t *testing.T) {
	s := open(t, t.TempDir())
	digest := send(t, s, one)
	p := part(s, digest, "tool one")
	must(t, os.Chmod(p, 0o664))
	held, err := os.OpenFile(p, os.O_WRONLY, 0)
	must(t, err)
	defer held.Close()
	_, err = s.Complete(t.Context(), digest)
	must(t, err)
	held.WriteString("evil")
	whole(t, s, "1")
}

func TestDirectoriesOfAnUploadThatWereReplaced(t *testing.T) {
	for name, replace := range map[string]func(t *testing.T, s *Store, up string){
		"the upload by a symlink into releases": func(t *testing.T, s *Store, up string) {
			must(t, os.RemoveAll(up))
			must(t, os.Symlink("../releases/0", up))
		},
		"the upload by a symlink outside": func(t *testing.T, s *Store, up string) {
			must(t, os.RemoveAll(up))
			must(t, os.Symlink("/tmp", up))
		},
		"the upload by a file": func(t *testing.T, s *Store, up string) {
			must(t, os.RemoveAll(up))
			write(t, up, "x")
		},
		"the parts by a symlink": func(t *testing.T, s *Store, up string) {
			must(t, os.RemoveAll(filepath.Join(up, "parts")))
			must(t, os.Symlink("../../releases/0/files", filepath.Join(up, "parts")))
		},
		"the parts by a pipe": func(t *testing.T, s *Store, up string) {
			must(t, os.RemoveAll(filepath.Join(up, "parts")))
			must(t, syscall.Mkfifo(filepath.Join(up, "parts"), 0o666))
		},
		"the manifest by another": func(t *testing.T, s *Store, up string) {
			_, raw, _ := app{version: "9"}.manifest(t) // its parts are all there
			write(t, filepath.Join(up, "manifest.json"), string(raw))
		},
		"the manifest by a huge one": func(t *testing.T, s *Store, up string) {
			must(t, os.Truncate(filepath.Join(up, "manifest.json"), 1<<40))
		},
		"the manifest by a symlink": func(t *testing.T, s *Store, up string) {
			must(t, os.Remove(filepath.Join(up, "manifest.json")))
			must(t, os.Symlink("../../releases/0/manifest.json", filepath.Join(up, "manifest.json")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, t.TempDir())
			push(t, s, app{version: "0", files: map[string]string{"keep": "keep"}})
			digest := send(t, s, one)
			replace(t, s, filepath.Join(s.Dir(), "incoming", digest))
			if _, err := s.Complete(t.Context(), digest); err == nil {
				t.Fatal("it became a release")
			}
			whole(t, s, "0")
			if _, err := s.Release("9"); err == nil {
				t.Error("something else became a release")
			}
			push(t, s, one)
			whole(t, s, "0")
			whole(t, s, "1")
		})
	}
}

func TestAnUploadThatSomebodyElseBeganIsPutAside(t *testing.T) {
	if os.Geteuid() != 0 {
		cannot(t, "only root can give a directory to another user")
	}
	s := open(t, t.TempDir())
	up := filepath.Join(s.Dir(), "incoming", digestOfApp(t, one))
	must(t, os.MkdirAll(filepath.Join(up, "parts", "deep"), 0o700))
	must(t, os.Chown(up, 12345, 12345))
	push(t, s, one)
	whole(t, s, "1")
	must(t, os.MkdirAll(up, 0o700))
	must(t, os.Chown(up, 12345, 12345))
	plan(t, s, app{version: "2", files: map[string]string{"a": "a"}})
	_, _, digest := app{version: "2", files: map[string]string{"a": "a"}}.manifest(t)
	parts := filepath.Join(s.Dir(), "incoming", digest, "parts")
	must(t, os.Chown(parts, 12345, 12345))
	plan(t, s, app{version: "2", files: map[string]string{"a": "a"}})
	if fi, err := os.Stat(parts); err != nil || !isOurs(fi) {
		t.Errorf("the parts are somebody else's: %v", err)
	}
}

func TestWhatIsLeftOfAnUploadNeverRemovesAnythingElse(t *testing.T) {
	s := open(t, t.TempDir())
	r := push(t, s, one)
	up := filepath.Join(s.Dir(), "incoming", r.Digest)
	must(t, os.Symlink("../releases/1", up))
	if _, err := s.Complete(t.Context(), r.Digest); err != nil {
		t.Fatal(err)
	}
	if exists(up) {
		t.Error("the symlink is still there")
	}
	whole(t, s, "1")
}

// While the store works somebody swaps a part between the right content, a link to a secret, a pipe and other content.
// Whatever is seen when: a release is right, or there is none; and nothing hangs.
func TestPartsThatChangeWhileTheyAreRead(t *testing.T) {
	s := open(t, t.TempDir())
	push(t, s, app{version: "0"})
	content := strings.Repeat("right", 10000)
	var stop atomic.Bool
	var swapped chan struct{}
	swap := func(p string) {
		defer close(swapped)
		side := p + "x"
		for i := 0; !stop.Load(); i++ {
			os.Remove(side)
			var late *os.File
			switch i % 5 {
			case 0, 1:
				os.WriteFile(side, []byte(content), 0o664)
				os.Chmod(side, 0o664) // the group may write, so it has to be copied
				late, _ = os.OpenFile(side, os.O_WRONLY, 0)
			case 2:
				os.Symlink("../../../releases/0/manifest.json", side)
			case 3:
				syscall.Mkfifo(side, 0o666)
			case 4:
				os.WriteFile(side, bytes.Repeat([]byte("wrong"), 10000), 0o664)
			}
			os.Rename(side, p)
			if late != nil {
				if i%5 == 1 {
					late.WriteAt([]byte("w"), 3)
				}
				late.Close()
			}
		}
		os.Remove(side)
	}
	right, refused := 0, 0
	for range 40 {
		a := app{version: "1", files: map[string]string{"f": content}}
		digest := send(t, s, a)
		stop.Store(false)
		swapped = make(chan struct{})
		go swap(part(s, digest, content))
		_, err := s.Complete(t.Context(), digest)
		stop.Store(true)
		<-swapped
		if err != nil {
			if !errors.Is(err, api.ErrDigest) && !errors.Is(err, api.ErrIncomplete) {
				t.Fatal(err)
			}
			refused++
			continue
		}
		right++
		whole(t, s, "1")
		must(t, s.Remove(t.Context(), "1", nil))
	}
	t.Logf("%d right, %d refused", right, refused)
	s.dropUpload(digestOfApp(t, app{version: "1", files: map[string]string{"f": content}}))
}

func digestOfApp(t *testing.T, a app) string {
	_, _, digest := a.manifest(t)
	return digest
}

func TestAReleaseThatIsNoneIsNotTakenForOne(t *testing.T) {
	s := open(t, t.TempDir())
	must(t, os.Mkdir(filepath.Join(s.Dir(), "releases", "1"), 0o755))
	must(t, os.Symlink("/etc", filepath.Join(s.Dir(), "releases", "2")))
	write(t, filepath.Join(s.Dir(), "releases", "3"), "x")
	push(t, s, app{version: "4"})
	must(t, os.Rename(filepath.Join(s.Dir(), "releases", "4"), filepath.Join(s.Dir(), "releases", "5")))
	for _, v := range []string{"1", "2", "3", "4", "5", "", ".", "..", "../state", "/etc", ".hotdeploy-x", "a\x00b"} {
		if r, err := s.Release(v); err == nil {
			t.Errorf("release %q: %+v", v, r)
		}
	}
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Errorf("list: %v, %v", list, err)
	}
	for _, v := range []string{"1", "2", "3"} {
		_, raw, _ := app{version: v}.manifest(t)
		if _, err := s.Plan(t.Context(), raw, here); !errors.Is(err, api.ErrConflict) {
			t.Errorf("plan %s: %v", v, err)
		}
	}
	if _, err := s.Complete(t.Context(), "../../etc"); !errors.Is(err, api.ErrBadRequest) {
		t.Errorf("a digest that is a path: %v", err)
	}
}

func TestAnotherUsersUploadThatCannotBeReadIsToldAsSuch(t *testing.T) {
	if os.Geteuid() != 0 {
		cannot(t, "only root can become another user")
	}
	dir := t.TempDir()
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	must(t, os.Chmod(dir, 0o777))
	root := filepath.Join(dir, "srv")
	cmd := childCommand(t, "unreadable part", "", root)
	exe, err := os.Open(cmd.Path) // other users cannot reach it by its path
	must(t, err)
	defer exe.Close()
	cmd.Path, cmd.ExtraFiles = "/proc/self/fd/3", []*os.File{exe}
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 12345, Gid: 12345}
	stdin, err := cmd.StdinPipe()
	must(t, err)
	var out bytes.Buffer
	cmd.Stderr = &out
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	name := make([]byte, 4096)
	n, err := stdout.Read(name)
	if err != nil {
		cmd.Wait()
		t.Fatalf("%v: %s", err, out.String())
	}
	part := strings.TrimSpace(string(name[:n]))
	must(t, os.Chown(part, 0, 0))
	must(t, os.Chmod(part, 0o600))
	must(t, stdin.Close())
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
}

func init() {
	children["unreadable part"] = func(args []string) error {
		t := childT{}
		s, err := Open(args[0], "chat")
		if err != nil {
			return err
		}
		digest := send(t, s, one)
		os.Stdout.WriteString(part(s, digest, "tool one") + "\n")
		os.Stdin.Read(make([]byte, 1)) // until the part belongs to somebody else
		_, err = s.Complete(t.Context(), digest)
		if !errors.Is(err, api.ErrForbidden) || !strings.Contains(err.Error(), "bin/tool") {
			return errors.Join(errors.New("complete did not name the part"), err)
		}
		push(t, s, one) // plan puts it away
		r := whole(t, s, "1")
		if f, err := os.OpenFile(filepath.Join(r.FilesDir, "run"), os.O_WRONLY, 0); err == nil {
			f.Close()
			return errors.New("a file of a release can be written to")
		}
		if err := os.WriteFile(filepath.Join(r.FilesDir, "new"), nil, 0o644); err == nil {
			return errors.New("a release can get new files")
		}
		if err := s.Remove(t.Context(), "1", nil); err != nil {
			return err
		}
		return s.Close()
	}
}
