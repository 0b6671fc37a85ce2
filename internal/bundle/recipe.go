package bundle

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// Format is the version of bundles that this code writes and reads. A new version of the delta is one of the bundle too.
const Format = 1

// ErrMalformed is what is no bundle, or none for these releases.
var ErrMalformed = errors.New("malformed bundle")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrMalformed, fmt.Errorf(format, args...))
}

// Recipe names the files whose contents go into a bundle, in their order.
type Recipe struct {
	Base string `json:"base,omitempty"` // digest of the release that From is of
	From Ranges `json:"from,omitempty"` // of the files in the base's manifest
	To   Ranges `json:"to"`             // of the files in the release's
}

// ID names the bundle of r for the release with that digest.
func (r Recipe) ID(digest string) string {
	return release.Digest(fmt.Appendf(r.encode(), "%d %s", Format, digest))
}

func (r Recipe) encode() []byte {
	b, err := json.Marshal(r)
	if err != nil {
		panic(err) // of numbers and a string
	}
	return b
}

// Ranges are numbers of files in a manifest, as pairs of the first and the last of each run.
type Ranges [][2]int

// RangesOf writes down a list of numbers.
func RangesOf(list []int) (r Ranges) {
	for _, n := range list {
		if last := len(r) - 1; last >= 0 && r[last][1] == n-1 {
			r[last][1] = n
		} else {
			r = append(r, [2]int{n, n})
		}
	}
	return r
}

// List is the numbers again. They are refused if they are not numbers of files, or more than there are.
func (r Ranges) List(files int) (list []int, err error) {
	for _, run := range r {
		first, last := run[0], run[1]
		if first < 0 || last < first || last >= files || last-first+1 > files-len(list) {
			return nil, malformed("files %d to %d of %d", first, last, files)
		}
		for n := first; n <= last; n++ {
			list = append(list, n)
		}
	}
	return list, nil
}

// files are those that the ranges name in a manifest. Only regular files with a content can be.
func (r Ranges) files(m *release.Manifest) (list []*release.File, size int64, err error) {
	numbers, err := r.List(len(m.Files))
	if err != nil {
		return nil, 0, err
	}
	for _, n := range numbers {
		f := &m.Files[n]
		if f.Link != "" || f.Size == 0 {
			return nil, 0, malformed("file %d has no content", n)
		}
		list, size = append(list, f), size+f.Size
	}
	return list, size, nil
}
