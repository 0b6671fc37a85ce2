package procs

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// ExecError is a program that the kernel refused to execute, or a working directory that it refused to enter. It wraps the
// errno: errors.Is works with os.ErrNotExist, os.ErrPermission and syscall.ENOEXEC.
type ExecError struct {
	Path  string
	Chdir bool // Path is the working directory
	Err   error
}

func (e *ExecError) Unwrap() error { return e.Err }

func (e *ExecError) Error() string {
	if e.Chdir {
		return fmt.Sprintf("enter %s: %v", e.Path, e.Err)
	}
	return e.Path + ": " + e.reason()
}

func (e *ExecError) reason() string {
	switch {
	case errors.Is(e.Err, os.ErrNotExist):
		if _, err := os.Stat(e.Path); err != nil {
			return "no such file"
		}
		if in := interpreter(e.Path); in != "" {
			return "its interpreter " + in + " is not on this host"
		}
		return "its interpreter is not on this host"
	case errors.Is(e.Err, os.ErrPermission):
		return e.refused()
	case errors.Is(e.Err, syscall.ENOEXEC):
		return "not a program for this machine, nor a script with a #! line"
	case errors.Is(e.Err, syscall.ETXTBSY):
		return "somebody has it open for writing"
	}
	return e.Err.Error()
}

func (e *ExecError) refused() string {
	st, err := os.Stat(e.Path)
	switch {
	case err != nil:
		return "a folder above it may not be entered by this user"
	case st.IsDir():
		return "it is a folder"
	case st.Mode()&0o111 == 0:
		return "not executable"
	}
	return "may not be executed by this user, or its file system is mounted noexec"
}

// maxInterpreterLine is as much of a #! line as the kernel looks at.
const maxInterpreterLine = 256

// interpreter is what executes the file at path: the program of its #! line, or its dynamic loader.
func interpreter(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	head := make([]byte, maxInterpreterLine)
	n, _ := io.ReadFull(f, head)
	if line, ok := bytes.CutPrefix(head[:n], []byte("#!")); ok {
		line, _, _ = bytes.Cut(line, []byte("\n"))
		if words := strings.Fields(string(line)); len(words) > 0 {
			return words[0]
		}
		return ""
	}
	return loader(f)
}

func loader(r io.ReaderAt) string {
	program, err := elf.NewFile(r)
	if err != nil {
		return ""
	}
	for _, p := range program.Progs {
		if p.Type == elf.PT_INTERP && p.Filesz <= 4096 {
			b, _ := io.ReadAll(p.Open())
			return strings.TrimRight(string(b), "\x00")
		}
	}
	return ""
}

// Find is the file that a command's first word means: with a slash in it a path in dir, or absolute; without one it is
// looked up in env's PATH. A name that is nowhere comes back as it is: executing it tells what is wrong.
func Find(name, dir string, env []string) string {
	if filepath.IsAbs(name) {
		return name
	}
	if strings.Contains(name, "/") {
		return filepath.Join(dir, name)
	}
	path := ""
	for _, kv := range env {
		if p, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = p
		}
	}
	for _, d := range filepath.SplitList(path) {
		full := filepath.Join(d, name)
		if st, err := os.Stat(full); filepath.IsAbs(full) && err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return full
		}
	}
	return name
}
