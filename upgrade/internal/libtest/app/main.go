// Command app is the release that the tests of libtest deploy: ordinary handlers of ordinary libraries behind a listener of the SDK. What it serves with
// is said in the environment: LIBRARY (a key of libraries, or "hub"), COMPRESS (not empty: WebSocket compression is on), MODE and PATIENCE (of the SDK).
//
// It ends when its standard input does, so that a test that is killed leaves nothing behind; a line there opens the gate for slow requests. Read main
// first, then one library's handler in echo.go.
package main

import (
	"bufio"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/hotdeploy/hotdeploy/upgrade"
)

func main() {
	log.SetFlags(log.Lmicroseconds)
	go obey()
	patience, _ := time.ParseDuration(os.Getenv("PATIENCE"))
	up, err := upgrade.New(upgrade.Options{States: []uint32{stateVersion}, Mode: upgrade.Mode(os.Getenv("MODE")), Patience: patience, Log: log.Printf})
	if err != nil {
		log.Fatal(err)
	}
	ln, err := up.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: routes(), Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	go func() { log.Fatal(server.Serve(ln)) }()
	if err := up.Ready(); err != nil {
		log.Fatal(err)
	}
	<-up.Exit()
}

// obey reads standard input to its end, which is the test's.
func obey() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		gate.open()
	}
	os.Exit(3)
}

func routes() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/ws", library(os.Getenv("LIBRARY"), os.Getenv("COMPRESS") != ""))
	httpRoutes(mux)
	return mux
}

func library(name string, compress bool) http.HandlerFunc {
	if name == "hub" {
		return new(hub).serve
	}
	make, ok := libraries[name]
	if !ok {
		log.Fatalf("LIBRARY=%q: there is none of that name", name)
	}
	return make(compress)
}
