package upgrade_test

import (
	"log"
	"net/http"

	"github.com/hotdeploy/hotdeploy/upgrade"
)

// A whole app. It runs under hotdeployd, under systemd with a socket unit, or alone, and what it says to its clients does not change.
func Example() {
	up, err := upgrade.New(upgrade.Options{Log: log.Printf})
	if err != nil {
		log.Fatal(err)
	}
	ln, err := up.Listen("tcp", ":8080") // inherited, or bound here
	if err != nil {
		log.Fatal(err)
	}
	go http.Serve(ln, http.DefaultServeMux) // Accept also returns the connections of the release before
	if err := up.Ready(); err != nil {      // from now on we serve, and the release before may go
		log.Fatal(err)
	}
	<-up.Exit() // everything has moved on, or has ended
}
