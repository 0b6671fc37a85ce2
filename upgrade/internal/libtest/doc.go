// Package libtest tries package upgrade with the WebSocket and MQTT libraries that people use: ordinary handlers that know nothing of
// upgrades, and clients made to be hostile.
//
// It is a module of its own, so that a program that takes in package upgrade does not take in these libraries; it may import
// upgrade/internal since its path lies below. What is always true: no message is lost, doubled or reordered, and no connection is closed,
// whatever the client does and whenever its connection moves. Read story in story_test.go first.
package libtest
