// Package lab boots throw-away Linux machines for end-to-end tests: each has a real systemd as
// PID 1, journald, sshd, sudo, a disk that survives a power cut, and a network line that can be
// slowed down, delayed and cut. A machine is ready in about a second.
//
// By hand, as root on Debian:
//
//	testdata/lab/lab.sh up 1              # vm1 answers after a second or two
//	testdata/lab/lab.sh ssh vm1           # a shell on it; LAB_USER=deploy for the other user
//	testdata/lab/lab.sh exec hotdeploy …  # a command of this host, where vm1 is reachable
//	testdata/lab/lab.sh crash vm1         # pull the plug
//	testdata/lab/lab.sh start vm1
//	testdata/lab/lab.sh down
//
// From a test (`./...` skips testdata, so build and test this package by its path):
//
//	l := lab.New(t, 2)
//	vm := l.Machine(1)
//	out, err := vm.Run(ctx, "systemctl is-active ssh")
//	err = l.Command(ctx, "hotdeploy", "--ssh-config", l.SSHConfig(), "push", "vm1").Run()
//	http.DefaultTransport.(*http.Transport).DialContext = l.DialContext
//
// What it owns: lab.sh does all the work on the machine level; the Go code picks names that
// nobody else uses, drives lab.sh, and reaches into the lab's network namespace.
//
// What is always true:
//   - The host's network, processes and files are not touched, except for packages that are
//     missing, /var/tmp/hotdeploy-lab and /run/hotdeploy-lab.
//   - Labs do not see each other. Any number of test processes may run labs side by side.
//   - A lab ends with its test process, however that ends: a small process waits for the lock
//     that the test process holds and then destroys the lab. What even that misses, the next
//     Open finds and removes.
//   - A machine sees this host's programs (/usr) but not its homes, services, logs, /usr/local
//     or other top-level directories. There is no name server and no way out to the internet.
//   - The hard limit on open files in a machine is 20,000, the soft limit 1,024.
//
// What differs from a VM: the kernel is the host's. Memory and CPUs are the host's too. A power
// cut ends every process and silences the line at once, but data that was written and not synced
// is still there afterwards, so a missing fsync does not show.
//
// Read first: Open.
package lab
