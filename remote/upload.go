package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/pkg/sftp"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

const (
	maxInFlight = 64  // writes of one file that the host has not confirmed
	maxWrites   = 128 // of all files: their buffers are what an upload takes in memory
	maxFiles    = 64  // open at once; OpenSSH's server allows about 1,000

	// Rewind is how much of the end of an interrupted file is sent again: the
	// bytes before it were confirmed by the host, these perhaps not, and they
	// may have holes. See [Upload].
	Rewind = maxInFlight * packetSize
)

// ErrSourceChanged means that a local file is not what its name says: it was
// written to after its digest was taken. What has been sent of it is no good.
var ErrSourceChanged = errors.New("the local file has changed meanwhile")

// Source is what a part is read from, an *os.File for example.
type Source interface {
	io.ReaderAt
	io.Closer
}

// Part is one file to upload.
type Part struct {
	// Name is its SHA-256 in lower-case hex, and its name on the host.
	Name string
	Size int64
	// Offset is how many bytes of it the host has, by the size of its file.
	// Zero starts anew, whatever is there: for a file that was found to be
	// wrong.
	Offset int64
	// Open is called when it is this part's turn, and not at all if there is
	// nothing to send. The source is closed when the part is done.
	Open func() (Source, error)
}

// single tells whether the part is sent in one write, which is there as a
// whole or not at all.
func (p Part) single() bool { return p.Size <= packetSize }

// complete tells whether nothing needs sending.
func (p Part) complete() bool { return p.Size == p.Offset && p.Size > 0 && p.single() }

// start is where sending begins.
func (p Part) start() int64 {
	if p.single() || p.Offset > p.Size {
		return 0
	}
	return max(0, p.Offset-Rewind)
}

// Upload writes the parts to files in a directory on the host, which must be
// there: large and small ones at once, with many writes on the way. It
// checks that what it reads is what the name says. Whether it has arrived
// is for the host to check: by digest, before anything is made of the files.
//
// progress, if not nil, is told how many more bytes the host has confirmed,
// beyond each part's Offset; calls do not overlap.
//
// When ctx ends or something fails, Upload returns at once; what the host
// has stays there, and the size of a file then tells where to go on. A write
// is sent only when all that are [Rewind] before it are confirmed. So
// whatever the order in which a server works, a file is good up to Rewind
// before its end, and that is where it goes on. (A power cut can still take
// what the host has confirmed; then the digest is wrong and the part starts
// anew, with an Offset of zero.)
//
// The error is ErrNeverRan if nothing was sent, ErrLineLost,
// ErrSourceChanged, that of a [Part.Open], what the host says of a file, or
// that of ctx.
func Upload(ctx context.Context, s *Session, dir string, parts []Part, progress func(bytes int64)) error {
	if err := validateParts(parts); err != nil {
		return neverRan("upload", err)
	}
	client, channel, err := s.openSFTP(ctx)
	if err != nil {
		return err
	}
	defer channel.abandon() // closes the files there; waits for nothing
	u := &upload{session: s, client: client, channel: channel, dir: dir, progress: progress,
		writes: semaphore.NewWeighted(maxWrites)}
	defer u.stopProgress()
	result := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { result <- u.all(ctx, parts) }()
	select {
	case err = <-result:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	return u.explain(ctx, err)
}

func validateParts(parts []Part) error {
	seen := make(map[string]bool, len(parts))
	for _, p := range parts {
		switch {
		case len(p.Name) != 64 || strings.Trim(p.Name, "0123456789abcdef") != "":
			return fmt.Errorf("part %q is not named by its digest", clip(p.Name, 80))
		case p.Size < 0 || p.Offset < 0 || p.Open == nil:
			return fmt.Errorf("part %s: a negative size, or nothing to read from", p.Name)
		case seen[p.Name]:
			return fmt.Errorf("part %s is there twice", p.Name)
		}
		seen[p.Name] = true
	}
	return nil
}

// upload is one call of Upload.
type upload struct {
	session *Session
	client  *sftp.Client
	channel *running
	dir     string
	writes  *semaphore.Weighted // one for each write on the way
	buffers sync.Pool           // of *[packetSize]byte

	mu       sync.Mutex // protects progress, held while it is called
	progress func(int64)
}

// all sends the large ones first, so that none of them is alone at the end.
func (u *upload) all(ctx context.Context, parts []Part) error {
	parts = slices.DeleteFunc(slices.Clone(parts), Part.complete)
	slices.SortStableFunc(parts, func(a, b Part) int { return cmp.Compare(b.Size-b.start(), a.Size-a.start()) })
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxFiles)
	for _, p := range parts {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error { return u.one(ctx, p) })
	}
	return g.Wait()
}

func (u *upload) one(ctx context.Context, p Part) error {
	src, err := p.Open()
	if err != nil {
		return fmt.Errorf("upload %s: %w", p.Name, err)
	}
	defer src.Close()
	f, err := u.open(p)
	if err != nil {
		return fmt.Errorf("open %s on the host: %w", path.Join(u.dir, p.Name), err)
	}
	if err := u.send(ctx, f, src, p); err != nil {
		return err // the file is closed with the channel
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("close %s on the host: %w", f.Name(), err)
	}
	return nil
}

// open opens the file on the host so that what is before start is there.
func (u *upload) open(p Part) (*sftp.File, error) {
	name := path.Join(u.dir, p.Name)
	if p.start() == 0 {
		return u.client.OpenFile(name, osCreate)
	}
	f, err := u.client.OpenFile(name, osResume)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() < p.start() || info.Size() > p.Size {
		return nil, fmt.Errorf("it has %d bytes, which is not what the host said before (%d)", info.Size(), p.Offset)
	}
	return f, nil
}

// confirmed tells of the bytes up to end, the last n of which are new.
func (u *upload) confirmed(p Part, end, n int64) {
	if n = min(n, end-min(p.Offset, p.Size)); p.Offset > p.Size {
		n = 0
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.progress != nil && n > 0 {
		u.progress(n)
	}
}

func (u *upload) stopProgress() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.progress = nil
}

// explain tells a lost line from a host that says no.
func (u *upload) explain(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	var status *sftp.StatusError
	switch {
	case errors.As(err, &status) && status.FxCode() == sftp.ErrSSHFxFailure:
		return fmt.Errorf("%w (is there room on the host's disk?)", err)
	case errors.Is(err, sftp.ErrSSHFxConnectionLost) || errors.Is(err, io.EOF):
		// of the whole line, or only of the sftp server there: both can be
		// tried again, and of both we do not know how far they got
		err = u.session.lost(ctx, err)
		if said := oneLine(u.channel.stderr.String()); said != "" {
			err = fmt.Errorf("%w: %s", err, printable(said))
		}
		return lineLost(err)
	case errors.As(err, &status):
		return err
	}
	// A write that the line did not take, or something of our own: the session knows.
	return u.session.lost(ctx, err)
}
