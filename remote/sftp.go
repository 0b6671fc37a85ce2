package remote

import (
	"context"
	"fmt"
	"io"

	"github.com/pkg/sftp"
)

// packetSize is the data in one write: the most that every server takes.
const packetSize = 32 << 10

// SFTP starts the file transfer subsystem. The caller closes the client. ctx
// matters to the start only. Writes of more than one packet are not ordered:
// for files that must survive an interruption use [Upload].
func (s *Session) SFTP(ctx context.Context) (*sftp.Client, error) {
	client, _, err := s.openSFTP(ctx)
	return client, err
}

func (s *Session) openSFTP(ctx context.Context) (*sftp.Client, *running, error) {
	c, err := s.request(ctx, "sftp", "subsystem", "sftp")
	if err != nil {
		return nil, nil, err
	}
	go io.Copy(c.stderr, c.ch.Stderr()) // ends with the channel
	type opened struct {
		client *sftp.Client
		err    error
	}
	result := make(chan opened, 1)
	go func() { // ends with the channel
		client, err := sftp.NewClientPipe(c.ch, c.ch, sftp.MaxPacket(packetSize),
			sftp.MaxConcurrentRequestsPerFile(maxInFlight), sftp.UseConcurrentReads(true), sftp.UseConcurrentWrites(true))
		result <- opened{client, err}
	}()
	select {
	case o := <-result:
		if o.err != nil {
			c.abandon()
			return nil, nil, neverRan("sftp on the host", c.s.lost(ctx, o.err))
		}
		return o.client, c, nil
	case <-ctx.Done():
		c.abandon()
		return nil, nil, fmt.Errorf("sftp on the host: %w", context.Cause(ctx))
	}
}
