package remote

import (
	"io"
	"os"

	"github.com/hotdeploy/hotdeploy/internal/spool"
)

// newSpool makes a spool that fill writes, in a goroutine of its own. It has no name on the disk and is gone with its last descriptor.
func newSpool(fill func(w io.Writer) error) (*spool.Spool, error) {
	f, err := os.CreateTemp("", "hotdeploy-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	s := spool.New(f, 0)
	go func() { s.End(fill(s)) }() // ends with fill's context
	return s, nil
}
