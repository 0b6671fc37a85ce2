package lab

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
)

// SSHConfig is the path of an ssh_config with the hosts vm1, vm2, … (user root) and vm1-deploy,
// vm2-deploy, … (user deploy, who may use sudo without a password). Host keys are checked.
// It is of use to commands started with Command.
func (l *Lab) SSHConfig() string { return filepath.Join(l.slot.dir, "ssh_config") }

// KnownHosts is the path of a known_hosts file with the machines' host keys.
func (l *Lab) KnownHosts() string { return filepath.Join(l.slot.dir, "known_hosts") }

// KeyFile is the path of the private key that root and deploy of all machines accept.
func (l *Lab) KeyFile() string { return filepath.Join(l.slot.dir, "vms", "id_ed25519") }

// HostKey is the machine's line for a known_hosts file.
func (m *Machine) HostKey() (string, error) {
	line, err := os.ReadFile(filepath.Join(m.dir, "known_hosts"))
	if err != nil {
		return "", fmt.Errorf("host key of %s: %w", m.Name, err)
	}
	return string(bytes.TrimSpace(line)), nil
}

func (l *Lab) writeSSHConfig() error {
	var config, known bytes.Buffer
	for _, m := range l.Machines {
		key, err := m.HostKey()
		if err != nil {
			return err
		}
		fmt.Fprintln(&known, key)
		for host, user := range map[string]string{m.Name: "root", m.Name + "-deploy": "deploy"} {
			fmt.Fprintf(&config, "Host %s\n\tHostName %s\n\tUser %s\n\tIdentityFile %s\n\tUserKnownHostsFile %s\n\tStrictHostKeyChecking yes\n\n",
				host, m.IP, user, l.KeyFile(), l.KnownHosts())
		}
	}
	if err := os.WriteFile(l.KnownHosts(), known.Bytes(), 0o600); err != nil {
		return fmt.Errorf("ssh files of the lab: %w", err)
	}
	if err := os.WriteFile(l.SSHConfig(), config.Bytes(), 0o600); err != nil {
		return fmt.Errorf("ssh files of the lab: %w", err)
	}
	return nil
}
