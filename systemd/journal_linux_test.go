package systemd

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coreos/go-systemd/v22/journal"
)

func TestOpenJournalStream_HeaderThenWhateverTheChildPrints(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stdout")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	stream, err := openJournalStream(path, "chat", journal.PriInfo)
	if err != nil {
		t.Fatal(err)
	}
	if flags, err := descriptorFlags(stream); err != nil || flags != "cloexec nonblock=false" {
		t.Errorf("descriptor is %q, %v; a child wants it blocking", flags, err)
	}
	child := exec.Command("/bin/sh", "-c", "echo hello; echo oops >&2")
	child.Stdout, child.Stderr = stream, stream
	if err := child.Run(); err != nil {
		t.Fatal(err)
	}
	stream.Close()

	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var lines []string
	for in := bufio.NewScanner(conn); in.Scan(); {
		lines = append(lines, in.Text())
	}
	if got, want := strings.Join(lines, "|"), "chat||6|1|0|0|0|hello|oops"; got != want {
		t.Errorf("journald was sent %q, want %q", got, want)
	}
}

func TestOpenJournalStream_NoJournal(t *testing.T) {
	dir := t.TempDir()
	if _, err := openJournalStream(filepath.Join(dir, "absent"), "chat", journal.PriInfo); !errors.Is(err, ErrNoJournal) {
		t.Errorf("absent socket: %v", err)
	}
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "dead"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	if _, err := openJournalStream(filepath.Join(dir, "dead"), "chat", journal.PriInfo); !errors.Is(err, ErrNoJournal) {
		t.Errorf("dead socket: %v", err)
	}
}

func TestJournalHeader_RefusesWhatWouldBreakOutOfItsLine(t *testing.T) {
	for _, id := range []string{"", "a\nb", "a\x00", "tab\t", strings.Repeat("x", maxIdentifier+1), "\xff\n"} {
		if h, err := journalHeader(id, journal.PriInfo); err == nil {
			t.Errorf("identifier %q accepted: %q", id, h)
		}
	}
	for _, p := range []Priority{-1, 8} {
		if _, err := journalHeader("chat", p); err == nil {
			t.Errorf("priority %d accepted", p)
		}
	}
}

func TestOnJournal_ComparesStderrWithTheVariable(t *testing.T) {
	dir := t.TempDir()
	ln, err := net.Listen("unix", filepath.Join(dir, "stdout"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	stream, err := openJournalStream(filepath.Join(dir, "stdout"), "chat", journal.PriInfo)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	match, err := JournalStreamEnv(stream)
	if err != nil {
		t.Fatal(err)
	}
	for value, want := range map[string]string{match: "true", "1:1": "false", "": "false", "nonsense": "false"} {
		child := roleCommand("on journal", "JOURNAL_STREAM="+value)
		child.Stderr = stream
		out, err := child.Output()
		if err != nil || string(out) != want {
			t.Errorf("JOURNAL_STREAM=%q: %q, %v; want %s", value, out, err, want)
		}
	}
}

func init() { roles["on journal"] = func() error { _, err := fmt.Print(OnJournal()); return err } }
