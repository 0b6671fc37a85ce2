#!/bin/sh
# Runs every fuzz target of the project for $1 (60s), one after another; go test takes one at a time.
set -e
for pkg in $(go list ./...); do
	for target in $(go test -list '^Fuzz' "$pkg" | grep '^Fuzz' || true); do
		echo "== $pkg $target"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "${1:-60s}" "$pkg"
	done
done
