// Package config reads the two files that people write: hotdeploy.toml in an app's project, and
// /etc/hotdeploy/<service>.toml on its host.
//
// What is always true: an unknown key or a malformed value is an error that names file, line and key, and all of them
// (the first ten) are told at once; what was loaded has passed every rule of package release. Nothing here reads the
// environment.
//
// Read [Parse] first.
package config
