package main

import (
	"flag"
	"log"
	"log/slog"
	"os"

	mqtt "github.com/mochi-mqtt/server/v2"

	"github.com/hotdeploy/hotdeploy/upgrade"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:1883", "where to listen if nothing is inherited")
	flag.Parse()
	if err := run(*addr); err != nil {
		log.Fatal(err)
	}
}

// run serves until every client has moved on or left.
func run(addr string) error {
	b := newBroker(mqtt.New(&mqtt.Options{Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))}))
	up, err := upgrade.New(b.options())
	if err != nil {
		return err
	}
	ln, err := up.Listen("tcp", addr, upgrade.MQTT())
	if err != nil {
		return err
	}
	if err := b.serve(ln); err != nil {
		return err
	}
	if err := up.Ready(); err != nil {
		return err
	}
	<-up.Exit()
	return nil
}

// broken says that this release does one thing wrong on purpose, to show that the tests notice.
func broken(what string) bool { return os.Getenv("MQTTBROKER_BREAK") == what }
