package remote

import (
	"context"
	"fmt"
	"net"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

const agentTimeout = 10 * time.Second

// agentKeys are the keys of an ssh-agent, reachable until close.
type agentKeys struct {
	conn net.Conn
	stop func() bool
	keys []agentKey
}

type agentKey struct {
	public ssh.PublicKey // a certificate where the agent holds one
	signer ssh.AlgorithmSigner
}

// openAgent lists the keys of the agent. It ends with ctx, and so do the
// signatures that are asked for later; those may wait for the operator, who
// confirms or touches.
func openAgent(ctx context.Context, socket string) (*agentKeys, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("reach the ssh-agent: %w", err)
	}
	a := &agentKeys{conn: conn, stop: context.AfterFunc(ctx, func() { conn.Close() })}
	if err := a.list(); err != nil {
		a.close()
		return nil, fmt.Errorf("list the keys of the ssh-agent: %w", err)
	}
	return a, nil
}

func (a *agentKeys) list() error {
	a.conn.SetDeadline(time.Now().Add(agentTimeout))
	defer a.conn.SetDeadline(time.Time{})
	signers, err := agent.NewClient(a.conn).Signers()
	if err != nil {
		return err
	}
	for _, s := range signers {
		signer, ok := s.(ssh.AlgorithmSigner)
		public, err := ssh.ParsePublicKey(s.PublicKey().Marshal())
		if !ok || err != nil {
			continue // a kind of key that x/crypto does not know
		}
		a.keys = append(a.keys, agentKey{public, signer})
	}
	return nil
}

func (a *agentKeys) close() {
	a.stop()
	a.conn.Close()
}
