// Package imports has no code: its tests hold the direction of the project's imports, and the page that says which tests there are.
package imports
