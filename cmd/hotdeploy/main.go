// Command hotdeploy is the operator's end: it packs releases, brings them to hosts over SSH and asks the daemons there.
//
// It owns argv, the standard streams and the exit status; what is to be done is done in packages remote and release. What is always
// true: the answer goes to standard output and the narration to standard error; --json makes the answer one JSON object; a
// verb that fails says what broke, what is serving now and what to type next; asking for help touches nothing.
//
// One file per verb. Read run in run.go first, then push.go.
package main

import (
	"context"
	"os"
)

func main() { os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
