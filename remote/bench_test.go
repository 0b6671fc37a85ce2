package remote_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hotdeploy/hotdeploy/remote"
)

// The two benchmarks compare with OpenSSH's own sftp, in turns, so that a
// busy machine slows both:
//
//	go test -run '^$' -bench Upload -benchtime 5x ./remote

const (
	benchLargeSize = 256 << 20
	benchRoundTrip = 50 * time.Millisecond
	// sftp takes about seven round trips for each file
	benchSmallFiles, benchSmallFilesSFTP = 2000, 100
)

// BenchmarkUploadLargeFile: the rate over loopback, and how it relates to
// that of sftp.
func BenchmarkUploadLargeFile(b *testing.B) {
	h, key := benchHost(b)
	part := partOf(randomBytes(benchLargeSize, 1))
	src := filepath.Join(b.TempDir(), part.Name)
	writeSource(b, src, part)
	part.Open = func() (remote.Source, error) { return os.Open(src) }
	var ours, theirs []time.Duration
	for b.Loop() {
		ours = append(ours, timed(func() { benchUpload(b, h, b.TempDir(), part) }))
		theirs = append(theirs, timed(func() { sftpPut(b, h, key, src, b.TempDir()) }))
	}
	report(b, ours, theirs, benchLargeSize, 1)
}

// BenchmarkUploadSmallFiles: many small files over a round trip of 50 ms.
// The ratio is of the times per file.
func BenchmarkUploadSmallFiles(b *testing.B) {
	h, key := benchHost(b)
	h.Port = delayed(b, h.Addr(), benchRoundTrip/2)
	few := b.TempDir()
	var parts []remote.Part
	for i := range benchSmallFiles {
		p := partOf(randomBytes(4<<10, uint64(i)))
		if i < benchSmallFilesSFTP {
			writeSource(b, filepath.Join(few, p.Name), p)
		}
		parts = append(parts, p)
	}
	var ours, theirs []time.Duration
	for b.Loop() {
		ours = append(ours, timed(func() { benchUpload(b, h, b.TempDir(), parts...) }))
		theirs = append(theirs, timed(func() { sftpPut(b, h, key, few, b.TempDir()) }))
	}
	report(b, ours, theirs, benchSmallFiles*4<<10, float64(benchSmallFiles)/benchSmallFilesSFTP)
}

// report is of medians; scale is how much more ours had to do.
func report(b *testing.B, ours, theirs []time.Duration, size int64, scale float64) {
	slices.Sort(ours)
	slices.Sort(theirs)
	o, t := ours[len(ours)/2].Seconds(), theirs[len(theirs)/2].Seconds()*scale
	b.ReportMetric(float64(size)/1e6/o, "MB/s")
	b.ReportMetric(float64(size)/1e6/t, "sftp-MB/s")
	b.ReportMetric(t/o, "times-sftp")
	b.ReportMetric(0, "ns/op") // of both together: means nothing
}

func timed(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}

func benchHost(b *testing.B) (remote.Host, string) {
	b.Helper()
	key := newKey(b)
	s := startOpenSSH(b, serverOptions{authorized: []ssh.PublicKey{key.Public()}})
	h := hostOf(b, s, writeKey(b, key, ""))
	h.HostKeyAlias = "bench"
	line := "bench " + string(ssh.MarshalAuthorizedKey(s.hostKey))
	h.KnownHosts = []string{writeFile(b, []byte(line), 0o600)}
	return h, h.IdentityFiles[0]
}

func writeSource(b *testing.B, path string, p remote.Part) {
	b.Helper()
	src, err := p.Open()
	if err != nil {
		b.Fatal(err)
	}
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, io.NewSectionReader(src, 0, p.Size)); err != nil {
		b.Fatal(err)
	}
}

// benchUpload includes the login, as that of sftp does.
func benchUpload(b *testing.B, h remote.Host, dir string, parts ...remote.Part) {
	b.Helper()
	s, err := remote.Dial(b.Context(), h, remote.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	if err := remote.Upload(b.Context(), s, dir, parts, nil); err != nil {
		b.Fatal(err)
	}
}

func sftpPut(b *testing.B, h remote.Host, key, what, dir string) {
	b.Helper()
	cmd := exec.CommandContext(b.Context(), "sftp", "-q", "-b", "-", "-r", "-P", strconv.Itoa(h.Port), "-F", os.DevNull,
		"-i", key, "-o", "IdentitiesOnly=yes", "-o", "HostKeyAlias=bench", "-o", "UserKnownHostsFile="+h.KnownHosts[0],
		"-o", "StrictHostKeyChecking=yes", h.User+"@"+h.Name)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		fmt.Fprintf(stdin, "put -r %s %s\n", what, dir)
		stdin.Close()
	}()
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("sftp: %v: %s", err, out)
	}
}

// delayed is a port behind which every byte takes its time, each way, and as
// many as like may be on the way at once.
func delayed(b *testing.B, target string, delay time.Duration) int {
	b.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	b.Cleanup(func() { cancel(); ln.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", target)
			if err != nil {
				in.Close()
				continue
			}
			context.AfterFunc(ctx, func() { in.Close(); out.Close() })
			wg.Go(func() { delay1(out, in, delay) })
			wg.Go(func() { delay1(in, out, delay) })
		}
	})
	return ln.Addr().(*net.TCPAddr).Port
}

func delay1(dst, src net.Conn, delay time.Duration) {
	type chunk struct {
		due  time.Time
		data []byte
	}
	onWay := make(chan chunk, 1<<14)
	var wg sync.WaitGroup
	wg.Go(func() {
		for c := range onWay {
			time.Sleep(time.Until(c.due)) // what is measured, not what is waited for
			dst.Write(c.data)
		}
		dst.(*net.TCPConn).CloseWrite()
	})
	for {
		buf := make([]byte, 32<<10)
		n, err := src.Read(buf)
		if n > 0 {
			onWay <- chunk{time.Now().Add(delay), buf[:n]}
		}
		if err != nil {
			close(onWay)
			wg.Wait()
			return
		}
	}
}
