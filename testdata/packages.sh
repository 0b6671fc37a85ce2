#!/bin/sh
# Fetches the host tools that the tests use, as root on Debian; elsewhere it says what is missing. The rest of the tests
# still runs then (with CI=true a skipped test is a failure).
need=
want() { command -v "$1" >/dev/null 2>&1 || need="$need $2"; } # $1: program, $2: Debian package
want gcc gcc; want ssh openssh-client; want ip iproute2; want python3 python3; want node nodejs; want ps procps
want chromium chromium; want git git; want nsenter util-linux; want systemctl systemd; want dbus-daemon dbus; want rsync rsync
[ -e /usr/include/stdlib.h ] || need="$need libc6-dev"
[ -n "$need" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
	echo "##### SOME TESTS CANNOT RUN HERE: missing$need (as root on Debian they are fetched by themselves) #####"
	exit 0
fi
echo "fetching$need"
export DEBIAN_FRONTEND=noninteractive
apt-get install -qq -y --no-install-recommends $need >/dev/null 2>&1 ||
	{ apt-get update -qq && apt-get install -qq -y --no-install-recommends $need >/dev/null; }
