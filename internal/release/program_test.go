package release

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
)

// elfSpec describes the head of an ELF file; the zero value is a static program for Linux on amd64.
type elfSpec struct {
	machine uint16 // 0: EM_X86_64
	typ     uint16 // 0: ET_EXEC
	abi     byte
	big     bool // byte order
	narrow  bool // 32 bits
	interp  string
}

// elfFile makes a file that is an ELF program as far as its head goes.
func elfFile(s elfSpec) string {
	if s.machine == 0 {
		s.machine = uint16(elf.EM_X86_64)
	}
	if s.typ == 0 {
		s.typ = uint16(elf.ET_EXEC)
	}
	var order binary.ByteOrder = binary.LittleEndian
	ident := [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT), s.abi}
	if s.big {
		order, ident[elf.EI_DATA] = binary.BigEndian, byte(elf.ELFDATA2MSB)
	}
	interp := append([]byte(s.interp), 0)
	var b bytes.Buffer
	write := func(v any) { _ = binary.Write(&b, order, v) } // a Buffer takes everything
	if s.narrow {
		ident[elf.EI_CLASS] = byte(elf.ELFCLASS32)
		write(elf.Header32{Ident: ident, Type: s.typ, Machine: s.machine, Version: 1, Phoff: 52, Ehsize: 52, Phentsize: 32, Phnum: 1, Shentsize: 40})
		write(elf.Prog32{Type: progType(s), Off: 84, Filesz: uint32(len(interp))})
	} else {
		write(elf.Header64{Ident: ident, Type: s.typ, Machine: s.machine, Version: 1, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1, Shentsize: 64})
		write(elf.Prog64{Type: progType(s), Off: 120, Filesz: uint64(len(interp))})
	}
	b.Write(interp)
	return b.String()
}

func progType(s elfSpec) uint32 {
	if s.interp != "" {
		return uint32(elf.PT_INTERP)
	}
	return uint32(elf.PT_NOTE)
}

func TestReadProgram_KnowsTheMachine(t *testing.T) {
	m := func(m elf.Machine) elfSpec { return elfSpec{machine: uint16(m)} }
	for _, c := range []struct {
		spec elfSpec
		want Platform
	}{
		{m(elf.EM_X86_64), Platform{"linux", "amd64"}},
		{m(elf.EM_AARCH64), Platform{"linux", "arm64"}},
		{m(elf.EM_RISCV), Platform{"linux", "riscv64"}},
		{m(elf.EM_PPC64), Platform{"linux", "ppc64le"}},
		{m(elf.EM_LOONGARCH), Platform{"linux", "loong64"}},
		{m(elf.EM_BPF), Platform{"linux", ""}},
		{elfSpec{machine: uint16(elf.EM_S390), big: true}, Platform{"linux", "s390x"}},
		{elfSpec{machine: uint16(elf.EM_PPC64), big: true}, Platform{"linux", "ppc64"}},
		{elfSpec{machine: uint16(elf.EM_MIPS), narrow: true}, Platform{"linux", "mipsle"}},
		{elfSpec{machine: uint16(elf.EM_MIPS), big: true}, Platform{"linux", "mips64"}},
		{elfSpec{machine: uint16(elf.EM_386), narrow: true}, Platform{"linux", "386"}},
		{elfSpec{machine: uint16(elf.EM_ARM), narrow: true}, Platform{"linux", "arm"}},
		{elfSpec{machine: uint16(elf.EM_X86_64), narrow: true}, Platform{"linux", "amd64p32"}},
		{elfSpec{abi: byte(elf.ELFOSABI_LINUX)}, Platform{"linux", "amd64"}},
		{elfSpec{abi: byte(elf.ELFOSABI_FREEBSD)}, Platform{"freebsd", "amd64"}},
		{elfSpec{interp: "/libexec/ld-elf.so.1"}, Platform{"freebsd", "amd64"}},
		{elfSpec{interp: "/lib/ld-musl-x86_64.so.1", typ: uint16(elf.ET_DYN)}, Platform{"linux", "amd64"}},
	} {
		p := readProgram(strings.NewReader(elfFile(c.spec)))
		if p.form != formELF || p.Platform != c.want || p.interp != c.spec.interp || !p.runs {
			t.Errorf("%+v: got %+v, want %v", c.spec, p, c.want)
		}
	}
}

func TestReadProgram_ReadsRealPrograms(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{self, sh} {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		p := readProgram(f)
		f.Close()
		if runtime.GOOS == "linux" && (p.form != formELF || !p.runs || p.Platform != Platform{runtime.GOOS, runtime.GOARCH}) {
			t.Errorf("%s: got %+v", name, p)
		}
		if p.interp != "" {
			if _, err := os.Stat(p.interp); err != nil {
				t.Errorf("%s: its loader: %v", name, err)
			}
		}
	}
}

func TestPack_TellsThePlatform(t *testing.T) {
	amd, arm := elfFile(elfSpec{}), elfFile(elfSpec{machine: uint16(elf.EM_AARCH64)})
	lib := func(m elf.Machine) string { return elfFile(elfSpec{machine: uint16(m), typ: uint16(elf.ET_DYN)}) }
	linux := func(arch string) Platform { return Platform{"linux", arch} }
	for _, c := range []struct {
		name    string
		command string
		files   map[string]string
		want    Platform
	}{
		{"a script alone", "./x", map[string]string{"x*": script}, Platform{}},
		{"a program", "./x", map[string]string{"x*": amd}, linux("amd64")},
		{"a program by a symlink", "./y", map[string]string{"x*": arm, "y": "->x"}, linux("arm64")},
		{"the start command decides", "./x", map[string]string{"x*": arm, "a*": amd, "z*": amd}, linux("arm64")},
		{"a script, and a program", "./x", map[string]string{"x*": script, "a*": arm}, linux("arm64")},
		{"a script, a program and a library for another machine", "./x", map[string]string{"x*": script, "a*": arm, "l.so": lib(elf.EM_X86_64)}, linux("arm64")},
		{"a script and a library", "./x", map[string]string{"x*": script, "l.so": lib(elf.EM_X86_64)}, linux("amd64")},
		{"a script and libraries for all machines", "./x", map[string]string{"x*": script, "l.so": lib(elf.EM_X86_64), "m.so": lib(elf.EM_AARCH64)}, Platform{}},
		{"a script and BPF", "./x", map[string]string{"x*": script, "a*": elfFile(elfSpec{machine: uint16(elf.EM_BPF)})}, Platform{}},
		{"a script and a broken program", "./x", map[string]string{"x*": script, "a*": amd[:20]}, Platform{}},
		{"a script and a program for another system", "./x", map[string]string{"x*": script, "a*": "MZ"}, Platform{}},
		{"a host's command, and a program", "node", map[string]string{"a*": arm}, linux("arm64")},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, dir, c.files)
			o := options(dir)
			o.Files, o.Spec.Run.Command = []string{"**"}, []string{c.command}
			if got := pack(t, o).Manifest.Platform; got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestPack_TellsTheInterpreters(t *testing.T) {
	const loader = "/lib64/ld-linux-x86-64.so.2"
	for _, c := range []struct {
		name    string
		command string
		path    string
		files   map[string]string
		want    []string
	}{
		{"static", "./x", "", map[string]string{"x*": elfFile(elfSpec{})}, nil},
		{"dynamic", "./x", "", map[string]string{"x*": elfFile(elfSpec{interp: loader})}, []string{loader}},
		{"script", "./x", "", map[string]string{"x*": "#!/usr/bin/python3 -u\n"}, []string{"/usr/bin/python3"}},
		{"script with spaces", "./x", "", map[string]string{"x*": "#! \t/bin/sh  -e\n"}, []string{"/bin/sh"}},
		{"script without an end", "./x", "", map[string]string{"x*": "#!/bin/sh"}, []string{"/bin/sh"}},
		{"env", "./x", "", map[string]string{"x*": "#!/usr/bin/env node\n"}, []string{"node"}},
		{"env -S", "./x", "", map[string]string{"x*": "#!/usr/bin/env -S A=b node --x\n"}, []string{"node"}},
		{"env -Snode", "./x", "", map[string]string{"x*": "#!/usr/bin/env -Snode --x\n"}, []string{"node"}},
		{"env --split-string", "./x", "", map[string]string{"x*": "#!/bin/env --split-string=-i node --x\n"}, []string{"node"}},
		{"env with an absolute path", "./x", "", map[string]string{"x*": "#!/usr/bin/env /opt/node\n"}, []string{"/opt/node"}},
		{"bare command", "node", "", map[string]string{"x": ""}, []string{"node"}},
		{"absolute command", "/usr/bin//node", "", map[string]string{"x": ""}, []string{"/usr/bin/node"}},
		{"interpreter in the release", "./x", "", map[string]string{"x*": "#!bin/node\n", "bin/node*": elfFile(elfSpec{interp: loader})}, []string{loader}},
		{"env, and the interpreter in the release", "./x", "bin:/usr/bin", map[string]string{"x*": "#!/usr/bin/env node\n", "bin/node*": elfFile(elfSpec{})}, nil},
		{"bare command in the release", "node", "/usr/bin:./bin", map[string]string{"bin/node*": elfFile(elfSpec{interp: loader})}, []string{loader}},
		{"bare command that is not executable in the release", "node", "bin", map[string]string{"bin/node": ""}, []string{"node"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, dir, c.files)
			o := options(dir)
			o.Files, o.Spec.Run.Command = []string{"**"}, []string{c.command}
			if c.path != "" {
				o.Spec.Run.Env = map[string]string{"PATH": c.path}
			}
			if got := pack(t, o).Manifest.Interpreters; !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// FuzzReadProgram: what is packed may be any file.
func FuzzReadProgram(f *testing.F) {
	f.Add([]byte(elfFile(elfSpec{interp: "/lib/ld.so"})))
	f.Add([]byte("#!/usr/bin/env -S x\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p := readProgram(bytes.NewReader(b))
		if p.form == formScript {
			_, _ = parseShebang(p.shebang)
		}
		if len(p.interp) > MaxPathBytes {
			t.Errorf("a loader of %d bytes", len(p.interp))
		}
	})
}

func TestReadProgram_OfAShortFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "x")
	put(t, filepath.Dir(name), map[string]string{"x": "\x7fEL"})
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if p := readProgram(f); p.form != formOther {
		t.Errorf("got %+v", p)
	}
}
