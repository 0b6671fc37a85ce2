//go:build race

package libtest

// raced: the test runs with the race detector, and so do the releases that it deploys.
const raced = true
