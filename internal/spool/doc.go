// Package spool is a file that one writes while others read it, who wait for what is not there yet.
//
// Always true of it: what is behind its size is not read, and every reader learns of the end, or of why there is none.
//
// Read [Spool] first.
package spool
