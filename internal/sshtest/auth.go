package sshtest

import (
	"bytes"
	"crypto/subtle"
	"errors"
	"slices"

	"golang.org/x/crypto/ssh"
)

var errDenied = errors.New("denied")

func serverConfig(opts Options) *ssh.ServerConfig {
	c := &ssh.ServerConfig{PublicKeyCallback: publicKeys(opts)}
	for _, k := range opts.HostKeys {
		c.AddHostKey(k)
	}
	if opts.Password != "" {
		addPassword(c, opts.Password)
	}
	return c
}

func publicKeys(opts Options) func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) {
	checker := ssh.CertChecker{
		IsUserAuthority: func(ca ssh.PublicKey) bool { return contains(opts.UserCAs, ca) },
		UserKeyFallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if contains(opts.AuthorizedKeys, key) {
				return nil, nil
			}
			return nil, errDenied
		},
	}
	return checker.Authenticate
}

func contains(keys []ssh.PublicKey, key ssh.PublicKey) bool {
	return slices.ContainsFunc(keys, func(k ssh.PublicKey) bool { return bytes.Equal(k.Marshal(), key.Marshal()) })
}

func addPassword(c *ssh.ServerConfig, password string) {
	check := func(got string) (*ssh.Permissions, error) {
		if subtle.ConstantTimeCompare([]byte(got), []byte(password)) == 1 {
			return nil, nil
		}
		return nil, errDenied
	}
	c.PasswordCallback = func(_ ssh.ConnMetadata, pw []byte) (*ssh.Permissions, error) { return check(string(pw)) }
	c.KeyboardInteractiveCallback = func(_ ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
		answers, err := ask("", "", []string{"Password: "}, []bool{false})
		if err != nil || len(answers) != 1 {
			return nil, errDenied
		}
		return check(answers[0])
	}
}
