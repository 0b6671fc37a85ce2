// Package e2e drives the built hotdeploy against machines with a real systemd and a real sshd, while clients hold
// connections and make new ones: whatever breaks there would have broken at an operator's.
//
// It owns one lab of three machines, which all tests share, and the services that its tests set up there; each test has a
// service of its own, by name and port, and takes it down.
//
// What is always true: a test looks at the machine itself (its files, its processes, what its clients were told) and not only at
// what the command says about it; it never waits for time to pass, only for something to happen, with a limit; a power
// cut or a dead line is a real one, nothing in the programs under test knows of it. Where no lab can run one loud
// line says so, and with CI=true that is a failure.
//
// `make e2e` builds the programs and runs it, `make soak-e2e` runs the long form of those tests that have one (-soak). HOTDEPLOY_BIN names
// another folder to take the programs from.
//
// Read first: service_test.go (a service, its project, its pushes), then push_test.go.
package e2e
