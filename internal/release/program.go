package release

import (
	"bytes"
	"debug/elf"
	"io"
	"strings"
)

// program is what a file's own bytes say about how it runs.
type program struct {
	form     programForm
	Platform        // of an ELF file
	runs     bool   // an ELF file that is started, not loaded by another one
	interp   string // an ELF program's dynamic loader
	shebang  string // what follows #! on a script's first line
}

type programForm int

const (
	formOther programForm = iota
	formELF
	formScript
	formMachO
	formPE
)

// readProgram looks at the head of f. What looks like a program and is damaged counts as "other": whether that matters
// depends on whether it is the start command.
func readProgram(f io.ReaderAt) program {
	head := make([]byte, 512)
	n, _ := f.ReadAt(head, 0)
	head = head[:n]
	switch {
	case bytes.HasPrefix(head, []byte(elf.ELFMAG)):
		return readELF(f)
	case bytes.HasPrefix(head, []byte("#!")):
		line, _, _ := bytes.Cut(head[2:], []byte("\n"))
		return program{form: formScript, shebang: string(line)}
	case hasMachO(head):
		return program{form: formMachO}
	case bytes.HasPrefix(head, []byte("MZ")):
		return program{form: formPE}
	}
	return program{}
}

func hasMachO(head []byte) bool {
	for _, magic := range []string{"\xfe\xed\xfa\xce", "\xfe\xed\xfa\xcf", "\xce\xfa\xed\xfe", "\xcf\xfa\xed\xfe", "\xca\xfe\xba\xbe"} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return true
		}
	}
	return false
}

func readELF(r io.ReaderAt) program {
	f, err := elf.NewFile(r)
	if err != nil {
		return program{}
	}
	p := program{form: formELF, interp: elfInterpreter(f)}
	p.Arch = elfArch(f)
	p.OS = elfOS(f.OSABI, p.interp)
	p.runs = f.Type == elf.ET_EXEC || f.Type == elf.ET_DYN && (p.interp != "" || isStaticPIE(f))
	return p
}

func elfInterpreter(f *elf.File) string {
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP && p.Filesz <= MaxPathBytes {
			b := make([]byte, p.Filesz)
			n, _ := p.ReadAt(b, 0)
			return strings.TrimRight(string(b[:n]), "\x00")
		}
	}
	return ""
}

// isStaticPIE tells a program without a loader from a library: both are "shared objects".
func isStaticPIE(f *elf.File) bool {
	flags, err := f.DynValue(elf.DT_FLAGS_1)
	return err == nil && len(flags) > 0 && elf.DynFlag1(flags[0])&elf.DF_1_PIE != 0
}

func elfOS(abi elf.OSABI, interp string) string {
	switch {
	case abi == elf.ELFOSABI_FREEBSD || strings.HasPrefix(interp, "/libexec/ld-elf"):
		return "freebsd"
	case abi == elf.ELFOSABI_NETBSD || interp == "/usr/libexec/ld.elf_so":
		return "netbsd"
	case abi == elf.ELFOSABI_OPENBSD || interp == "/usr/libexec/ld.so":
		return "openbsd"
	case abi == elf.ELFOSABI_SOLARIS:
		return "solaris"
	}
	return "linux"
}

// elfArch is the machine in Go's words; empty for one that Go does not run on (BPF, a GPU).
func elfArch(f *elf.File) string {
	little, wide := f.Data == elf.ELFDATA2LSB, f.Class == elf.ELFCLASS64
	switch f.Machine {
	case elf.EM_386:
		return "386"
	case elf.EM_ARM:
		return when(little, "arm", "armbe")
	case elf.EM_AARCH64:
		return when(little, "arm64", "arm64be")
	case elf.EM_X86_64:
		return when(wide, "amd64", "amd64p32")
	case elf.EM_RISCV:
		return when(wide, "riscv64", "riscv")
	case elf.EM_PPC64:
		return when(little, "ppc64le", "ppc64")
	case elf.EM_S390:
		return when(wide, "s390x", "s390")
	case elf.EM_LOONGARCH:
		return when(wide, "loong64", "loong32")
	case elf.EM_MIPS:
		return when(wide, "mips64", "mips") + when(little, "le", "")
	}
	return ""
}

func when(c bool, yes, no string) string {
	if c {
		return yes
	}
	return no
}
