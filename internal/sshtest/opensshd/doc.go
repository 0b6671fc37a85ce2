// Package opensshd runs OpenSSH's own sshd for a test, on a free port of
// loopback, as the user who runs the test, with keys and configuration of
// its own.
//
// Always true of it: it installs nothing and changes nothing outside of its
// cache directory and the test's. Where there is no sshd, root on Debian has
// the package downloaded and unpacked into the cache; elsewhere the test is
// skipped in a loud line, and fails if CI=true.
//
// Read [Start] first.
package opensshd
