// Package probe asks a generation whether it is ready and healthy.
package probe
