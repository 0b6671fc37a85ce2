// Command mqttbroker is an MQTT broker, mochi-mqtt as it is, whose clients stay connected while it is replaced: with their subscriptions, their
// messages under way, their aliases and their wills. It is the model for hubs and brokers: apps whose connections know each other. README.md tells
// how it is done, and what is not promised.
//
// What is always true: while a handoff is under way nothing comes in, so that what the state says of each client stays true until
// its connection has followed; and a client that only changes process does not count as gone.
//
// Read broker.options first, then hook in client.go, then load in state.go.
package main
