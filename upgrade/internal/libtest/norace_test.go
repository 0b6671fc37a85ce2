//go:build !race

package libtest

const raced = false
