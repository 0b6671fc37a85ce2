// Package failpoint ends or stops a process at a named step of a handoff, for tests. It owns nothing and is in no normal build: package upgrade takes
// it in with the tag failpoints, and in its own tests. Read [FromEnv] first.
package failpoint
