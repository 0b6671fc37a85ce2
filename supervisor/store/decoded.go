package store

import (
	"slices"
	"sync"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// maxDecoded is how many bytes of manifests are remembered, as they lie on the disk; decoded they take about twice that.
const maxDecoded = 2 << 20

// maxManifests is how many are: the releases that a service keeps, and those that are on their way.
const maxManifests = 64

// decoded remembers manifests that were decoded, which takes a while where there are thousands of files. Nobody may change what it gives
// out. The zero value is ready.
type decoded struct {
	mu   sync.Mutex // protects what follows
	list []decodedManifest
	size int
}

type decodedManifest struct {
	digest   string
	size     int
	manifest *release.Manifest
}

// decode decodes raw, whose digest that is.
func (d *decoded) decode(digest string, raw []byte) (*release.Manifest, error) {
	if m := d.find(digest); m != nil {
		return m, nil
	}
	m, err := release.Decode(raw)
	if err != nil {
		return nil, err
	}
	if len(raw) > maxDecoded {
		return m, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.list = append(d.list, decodedManifest{digest, len(raw), m})
	for d.size += len(raw); d.size > maxDecoded || len(d.list) > maxManifests; d.list = slices.Delete(d.list, 0, 1) {
		d.size -= d.list[0].size
	}
	return m, nil
}

func (d *decoded) find(digest string) *release.Manifest {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range d.list {
		if m.digest == digest {
			return m.manifest
		}
	}
	return nil
}
