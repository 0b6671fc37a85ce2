// Package libtest tries package upgrade with the WebSocket libraries that people use: ordinary handlers that know nothing of
// upgrades, and clients made to be hostile. It is tests, and the program app that they deploy; nothing here is imported by package upgrade, so that a
// program that takes that in does not take in these libraries.
//
// What is always true: no message is lost, doubled or reordered, and no connection is closed, whatever the client does and whenever its
// connection moves. Read story in story_test.go first.
package libtest
