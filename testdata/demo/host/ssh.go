package host

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/hotdeploy/hotdeploy/internal/sshtest"
)

// startSSH serves SSH on loopback, and writes the configuration by which the command finds it.
func (h *Host) startSSH() error {
	host, err := sshtest.NewKey()
	if err != nil {
		return err
	}
	user, err := sshtest.NewKey()
	if err != nil {
		return err
	}
	h.sshd, err = sshtest.Start(sshtest.Options{AuthorizedKeys: []ssh.PublicKey{user.Public()}, HostKeys: []ssh.Signer{host.Signer}})
	if err != nil {
		return err
	}
	h.name, h.ssh = target, []string{"--ssh-config", h.path(".ssh/config")}
	if _, err := exec.LookPath("ssh"); err != nil { // nobody reads the configuration then; the command looks in the home directory
		h.name, h.ssh = target+"@"+h.sshd.Addr(), nil
	}
	return h.writeSSH(host, user)
}

func (h *Host) writeSSH(host, user sshtest.Key) error {
	pem, err := user.PEM("")
	if err != nil {
		return err
	}
	_, port, _ := strings.Cut(h.sshd.Addr(), ":")
	known := fmt.Sprintf("[127.0.0.1]:%s %s", port, ssh.MarshalAuthorizedKey(host.Public()))
	config := fmt.Sprintf("Host %s\n\tHostName 127.0.0.1\n\tPort %s\n\tUser demo\n\tIdentityFile %s\n\tIdentitiesOnly yes\n\tUserKnownHostsFile %s\n",
		target, port, h.path(".ssh/id_ed25519"), h.path(".ssh/known_hosts"))
	return errors.Join(
		os.Mkdir(h.path(".ssh"), 0o700),
		os.WriteFile(h.path(".ssh/id_ed25519"), pem, 0o600),
		os.WriteFile(h.path(".ssh/known_hosts"), []byte(known), 0o600),
		os.WriteFile(h.path(".ssh/config"), []byte(config), 0o600))
}
