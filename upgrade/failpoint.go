//go:build !failpoints

package upgrade

// failpoint is where a test breaks a handoff: see failpoint_on.go. In a normal build it is nothing.
func failpoint(string) {}
