package sshtest

import (
	"errors"
	"io"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// serveSession answers the requests of one session channel: one exec or one
// subsystem, and signals to it. When the client is gone the command loses
// its streams, and is waited for, but not killed: as with sshd.
func (s *Server) serveSession(nc ssh.NewChannel) {
	ch, requests, err := nc.Accept()
	if err != nil {
		return
	}
	defer ch.Close()
	var cmd *command
	started := false
	ended := make(chan struct{})
	for req := range requests {
		ok := false
		var run func() // begins after the reply: it closes the channel, perhaps at once
		switch {
		case req.Type == "exec" && !started && !s.opts.ForbidExec:
			if cmd, ok = s.startCommand(ch, payloadString(req.Payload)); ok {
				started = true
				run = func() { s.waitCommand(ch, cmd) }
			}
		case req.Type == "subsystem" && !started && !s.opts.ForbidSFTP && payloadString(req.Payload) == "sftp":
			started, ok = true, true
			run = func() { s.serveSFTP(ch) }
		case req.Type == "signal" && cmd != nil:
			ok = cmd.signal(payloadString(req.Payload))
		}
		if req.WantReply {
			req.Reply(ok, nil)
		}
		if run != nil {
			go func() { defer close(ended); run() }()
		}
	}
	if cmd != nil {
		cmd.hangUp()
	}
	if started {
		<-ended
	}
}

func payloadString(payload []byte) string {
	var p struct{ Value string }
	if ssh.Unmarshal(payload, &p) != nil {
		return ""
	}
	return p.Value
}

func (s *Server) serveSFTP(ch ssh.Channel) {
	defer ch.Close()
	var options []sftp.ServerOption
	if s.opts.Dir != "" {
		options = append(options, sftp.WithServerWorkingDirectory(s.opts.Dir))
	}
	server, err := sftp.NewServer(ch, options...)
	if err != nil {
		s.log("sftp: %v", err)
		return
	}
	if err := server.Serve(); err != nil && !errors.Is(err, io.EOF) {
		s.log("sftp: %v", err)
	}
	server.Close() // closes the files that the client left open
}
