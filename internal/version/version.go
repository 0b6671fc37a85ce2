// Package version tells which hotdeploy this is. Command and daemon of one build say the same.
package version

import "runtime/debug"

// number is set by the linker (see the Makefile); a build by go install has the module's version instead.
var number = ""

// String is the version, such as 0.1.0, or "devel".
func String() string {
	if number != "" {
		return number
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}
