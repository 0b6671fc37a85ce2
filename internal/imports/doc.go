// Package imports has no code: its test holds the direction of the project's imports.
package imports
