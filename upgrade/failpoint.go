package upgrade

// failpoint is where a test breaks a handoff (PROTOCOL.md, 4). In a normal build it is nothing.
var failpoint = func(name string) {}
