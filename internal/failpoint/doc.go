// Package failpoint stops a daemon at a named instruction, so that a test can kill it there, or whoever else is concerned. It owns nothing, and
// does nothing unless [Arm] was called: by tests, and by a hotdeployd that was built with the tag failpoints. (Package upgrade, which imports
// nothing of ours, has its own.) Read [At] first.
package failpoint
