#!/bin/bash
# lab.sh - throw-away Linux machines with a real systemd (PID 1), journald and sshd.
# No VM monitor, no container engine: unshare(1), overlayfs, cgroup2 and network namespaces.
# A machine boots in about a second. Needs root on Debian; fetches what is missing with apt-get.
#
#   lab.sh up [N]              boot machines vm1..vmN (default 1), wait until sshd answers
#   lab.sh ssh vmX [CMD...]    ssh as root (strict host key check); LAB_USER=deploy for the other user
#   lab.sh sftp vmX [ARGS...]  sftp
#   lab.sh enter vmX CMD...    run CMD in the machine without ssh
#   lab.sh exec CMD...         run CMD on this host, but where the machines are reachable
#   lab.sh reboot vmX          orderly reboot
#   lab.sh stop vmX            orderly poweroff; the disk is kept
#   lab.sh crash vmX           power cut: the line goes silent, every process dies at once; the disk is kept
#   lab.sh start vmX           boot a stopped or crashed machine again from its disk
#   lab.sh rate vmX RATE|off   limit the line in both directions, for example 10mbit
#   lab.sh link vmX DELAY [LOSS% [JITTER]] | off
#                              delay each way, for example: link vm1 25ms 1 5ms (see delaylink/)
#   lab.sh disk vmX PATH SIZE  a file system of SIZE (for example 64m) at PATH, from the next start on
#   lab.sh list | ip vmX | log vmX
#   lab.sh down                poweroff of all machines in order, then destroy
#   lab.sh destroy             end everything of this lab at once and forget it
#   lab.sh base | clean        build the shared base image | destroy this lab and all base images (while no other lab runs)
#
# Variables: LAB_ROOT   what labs share: packages, base image (default /var/tmp/hotdeploy-lab)
#            LAB_DIR    this lab's state (default $LAB_ROOT/by-hand)
#            LAB_NET    prefix of its network namespaces and its cgroup (default "lab")
#            LAB_SUBNET its /24 (default 10.76.0); the host end is .1, vmX is .(10+X)
#            LAB_EPHEMERAL=1 keeps machine disks in memory
# Two labs side by side: give each its own LAB_DIR, LAB_NET and LAB_SUBNET.
set -euo pipefail
umask 022
export PATH=$PATH:/usr/sbin:/sbin
SELF=$(readlink -f "$0")
ROOT=${LAB_ROOT:-/var/tmp/hotdeploy-lab}
DIR=${LAB_DIR:-$ROOT/by-hand}
NET=${LAB_NET:-lab}
SUBNET=${LAB_SUBNET:-10.76.0}
USER_=${LAB_USER:-root}
RUN=/run/hotdeploy-lab # locks; not below LAB_ROOT, since namespace names are host-wide
VMS=$DIR/vms

die() { echo "lab.sh: $*" >&2; exit 1; }
ip_of() { echo "$SUBNET.$((10 + ${1#vm}))"; }
in_net() { nsenter --net="/run/netns/$NET" "$@"; }
all() { local d; for d in "$VMS"/vm*/; do [ -d "$d" ] && basename "$d"; done; return 0; }
need_vm() { [[ ${1:-} =~ ^vm[1-9][0-9]*$ ]] || die "not a machine: ${1:-(none)}"; [ -d "$VMS/$1" ] || die "$1: no such machine (lab.sh up)"; }
until_ok() { # $1: tries of 20 ms each; then a command
	local i n=$1; shift
	for ((i = 0; i < n; i++)); do "$@" 2>/dev/null && return; sleep 0.02; done
	return 1
}

# ---------------------------------------------------------------- what the host must have
have() { command -v "$1" >/dev/null; }
apt() { # with one "update" where the package lists are missing or outdated
	local a=(apt-get -qq -y --no-install-recommends -o APT::Sandbox::User=root -o Dpkg::Lock::Timeout=120 "$@")
	export DEBIAN_FRONTEND=noninteractive
	"${a[@]}" >"$ROOT/apt.log" 2>&1 && return
	apt-get -qq update >>"$ROOT/apt.log" 2>&1 || true
	"${a[@]}" >>"$ROOT/apt.log" 2>&1 || { tail -n 20 "$ROOT/apt.log" >&2; die "apt-get cannot fetch what a lab needs"; }
}
host_tools() {
	local -a p=()
	have ip && have tc || p+=(iproute2)
	have nsenter && have unshare && have mount || p+=(util-linux mount)
	have ps || p+=(procps)
	have ssh && have ssh-keygen && have sftp || p+=(openssh-client)
	[ -x /lib/systemd/systemd ] || p+=(systemd)
	have dbus-daemon || p+=(dbus)
	compgen -G '/lib/*/security/pam_systemd.so' >/dev/null || p+=(libpam-systemd)
	[ ${#p[@]} = 0 ] || apt install "${p[@]}"
}

# ---------------------------------------------------------------- base image
# The host's own root is the lower overlay layer; above it lies a layer with sshd, sudo and two users,
# which hides what belongs to the host alone (homes, services, logs). It costs 2 s and 2 MB once per boot
# of the host. Its name carries a digest of what makes it, so an edited script never meets an old image.
mask_units=(getty@tty1.service console-getty.service systemd-udevd.service systemd-udev-trigger.service
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer man-db.timer
	e2scrub_reap.service systemd-timesyncd.service systemd-firstboot.service systemd-pstore.service
	dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount
	sys-fs-fuse-connections.mount sys-kernel-config.mount)
hide_dirs() { # directories of the host that a machine sees empty
	local d
	for d in /*/; do
		d=${d%/}
		[ ! -L "$d" ] || continue
		case $d in /bin|/dev|/etc|/lib*|/mnt|/proc|/run|/sbin|/sys|/tmp|/usr|/var) ;; *) echo "$d" ;; esac
	done
	for d in /usr/local /etc/systemd/system /etc/ssh /etc/hotdeploy /var/log /var/tmp /var/lib/systemd /var/spool/cron; do
		[ ! -d "$d" ] || [ -L "$d" ] || echo "$d"
	done
}
build_layer() { # $1: a tmpfs; the layer becomes $1/up
	local l=$1/up d p
	mkdir -p "$1/up" "$1/work" "$1/view" "$ROOT/debs/partial"
	apt install --download-only -o Dir::Cache::Archives="$ROOT/debs" openssh-server openssh-sftp-server sudo
	for p in "$ROOT"/debs/*.deb; do [ ! -e "$p" ] || dpkg -x "$p" "$l"; done
	# merged-usr: a real /lib in the layer would hide the link
	for d in lib lib64 bin sbin; do
		if [ -d "$l/$d" ] && [ ! -L "$l/$d" ]; then mkdir -p "$l/usr/$d"; cp -a "$l/$d/." "$l/usr/$d/"; rm -r "${l:?}/$d"; fi
	done
	# A directory made where a whiteout was becomes opaque: no tool for extended attributes needed.
	for d in $(hide_dirs); do rm -rf "${l:?}$d"; mkdir -p "$(dirname "$l$d")"; mknod "$l$d" c 0 0; done
	mount -t overlay overlay -o "lowerdir=/,upperdir=$l,workdir=$1/work" "$1/view"
	for d in $(hide_dirs); do mkdir "$1/view$d"; done
	configure "$1/view"
	umount "$1/view"
}
configure() { # $1: root of the base image
	local r=$1 u s=$1/etc/systemd/system
	mkdir -p "$r"/{root,home,srv,opt} "$r/usr/local/bin" "$r/etc/ssh/sshd_config.d" "$s/multi-user.target.wants" "$r/etc/systemd/system.conf.d" "$r/etc/sudoers.d"
	chmod 700 "$r/root"; mkdir -p "$r/var/tmp"; chmod 1777 "$r/var/tmp"
	cp "$r/usr/share/openssh/sshd_config" "$r/etc/ssh/"
	printf '%s\n' 'PermitRootLogin prohibit-password' 'PasswordAuthentication no' 'UseDNS no' \
		'MaxStartups 100:30:200' 'HostKey /etc/ssh/ssh_host_ed25519_key' >"$r/etc/ssh/sshd_config.d/lab.conf"
	sed -i '/^deploy:/d' "$r/etc/passwd" "$r/etc/group"
	grep -q ^sshd: "$r/etc/passwd" || echo 'sshd:x:998:65534::/run/sshd:/usr/sbin/nologin' >>"$r/etc/passwd"
	echo 'deploy:x:1900:1900::/home/deploy:/bin/bash' >>"$r/etc/passwd"; echo 'deploy:x:1900:' >>"$r/etc/group"
	sed 's/:.*/:*:19000::::::/' "$r/etc/passwd" >"$r/etc/shadow"; chmod 640 "$r/etc/shadow"
	echo 'deploy ALL=(ALL:ALL) NOPASSWD: ALL' >"$r/etc/sudoers.d/lab"; chmod 440 "$r/etc/sudoers.d/lab"
	mkdir -p "$r/home/deploy"; chown 1900:1900 "$r/home/deploy"
	for u in "${mask_units[@]}"; do ln -sf /dev/null "$s/$u"; done
	ln -sf /lib/systemd/system/ssh.service "$s/multi-user.target.wants/ssh.service"
	ln -sf /lib/systemd/system/multi-user.target "$s/default.target"
	printf '[Manager]\nDefaultLimitNOFILE=1024:20000\n' >"$r/etc/systemd/system.conf.d/lab.conf"
	mkdir -p "$r/var/log/journal" # the journal survives a crash or reboot of the machine
	rm -f "$r/etc/resolv.conf"; : >"$r/etc/resolv.conf"; : >"$r/etc/fstab" # no name server: a lookup fails at once
	echo '127.0.0.1 localhost' >"$r/etc/hosts"
}
base_dir() { echo "$ROOT/base-$( (declare -f hide_dirs build_layer configure; echo "${mask_units[@]}") | sha256sum | cut -c1-12)"; }
base() {
	local b; b=$(base_dir)
	mkdir -p "$RUN"; mkdir -pm 700 "$ROOT"
	[ -O "$ROOT" ] || die "$ROOT belongs to somebody else; remove it or set LAB_ROOT"
	[ ! -e "$b/ready" ] || return 0
	( # several labs may start at once: one builds, the others wait
		flock 9
		[ ! -e "$b/ready" ] || exit 0
		host_tools
		mkdir -p "$b/layer" "$b/root"
		! mountpoint -q "$b/layer" || umount -l "$b/layer"
		# a tmpfs of its own: overlayfs refuses (ELOOP) a layer that lies inside another layer
		mount -t tmpfs -o mode=755 lab-layer "$b/layer"
		build_layer "$b/layer"
		! mountpoint -q "$b/root" || umount -l "$b/root"
		stacked || mount -t overlay overlay -o "lowerdir=$b/layer/up:/" "$b/root"
		ln -sfn layer/up "$b/ready" # dangles, hence "not ready", when a reboot of the host took the tmpfs
	) 9>"$RUN/base.lock"
}
# overlayfs stacks two deep. On an ordinary disk the base is one overlay and each machine another, since a
# machine's disk may not lie inside its own lower layer "/". Where "/" is an overlay itself (a container),
# machines use the layers directly and keep their disks in memory.
stacked() { [ "$(stat -fc %T /)" = overlayfs ]; }
lower() { local b; b=$(base_dir); if stacked; then echo "$b/layer/up:/"; else echo "$b/root"; fi; }
clean() {
	local b
	destroy
	for b in "$ROOT"/base-*/; do
		for m in root layer; do ! mountpoint -q "$b$m" || umount "$b$m"; done
		rm -rf --one-file-system "$b"
	done
}

# ---------------------------------------------------------------- processes: one cgroup each for a machine, its supervisor, its line
cgroup2() {
	local c; c=$(sed -n 's/^[^ ]* \([^ ]*\) cgroup2 .*/\1/p' /proc/self/mounts | head -n1)
	[ -n "$c" ] || { c=$RUN/cgroup2; mkdir -p "$c"; mount -t cgroup2 cgroup2 "$c"; }
	echo "$c"
}
CG=$(cgroup2)/$NET
init_pid() { head -n1 "$CG/$1/init.scope/cgroup.procs" 2>/dev/null || true; } # host pid of its systemd
populated() { grep -qs '^populated 1' "$CG/$1/cgroup.events"; }
running() { populated "$1" || populated "$1.sup"; }
alive() { local s; s=$(ps -o stat= -p "$1" 2>/dev/null) && [ "${s:0:1}" != Z ]; } # a zombie waits for the host's pid 1
gone() { ! alive "$1"; }
remove_group() { [ ! -d "$1" ] || find "$1" -depth -type d -exec rmdir {} +; }
kill_group() { # $1: a cgroup directory; all of its processes get SIGKILL
	[ -d "$1" ] || return 0
	echo 1 >"$1/cgroup.kill"
	until_ok 500 remove_group "$1" || die "$1: processes do not end"
}
delegate() { # so that limits of units in the machines work, where cgroup2 has the controllers at all
	local c
	for c in $(cat "$CG/cgroup.controllers"); do echo "+$c" >"$CG/cgroup.subtree_control" || true; done 2>/dev/null
}
in_group() { echo "$BASHPID" >"$CG/$1/cgroup.procs"; }

# ---------------------------------------------------------------- network
# namespace $NET: br0 $SUBNET.1/24 <- the test client lives here; one veth per machine.
# The default network namespace of the host is not touched. Fixed MACs: nobody's ARP cache goes stale.
mac() { printf '02:77:00:00:00:%02x' "$1"; }
netns_add() { flock "$RUN/netns.lock" ip netns add "$1"; } # the very first one mounts /run/netns: not safe in parallel
net_up() {
	[ ! -e "/run/netns/$NET" ] || return 0
	netns_add "$NET"
	ip -n "$NET" link set lo up
	ip -n "$NET" link add br0 address "$(mac 1)" type bridge forward_delay 0
	ip -n "$NET" addr add "$SUBNET.1/24" dev br0
	ip -n "$NET" link set br0 up
}
net_vm() { # $1: machine
	local ns=$NET-$1 br=br0
	[ ! -e "/run/netns/$ns" ] || return 0
	netns_add "$ns"
	ip -n "$NET" link add "$1" type veth peer name eth0 address "$(mac $((10 + ${1#vm})))" netns "$ns"
	[ ! -d "$CG/$1.link" ] || br=b$1
	ip -n "$NET" link set "$1" master "$br" up
	ip -n "$ns" link set lo up
	ip -n "$ns" addr add "$(ip_of "$1")/24" dev eth0
	ip -n "$ns" link set eth0 up
	ip -n "$ns" route add default via "$SUBNET.1"
	[ ! -e "$VMS/$1/rate" ] || shape "$1" "$(cat "$VMS/$1/rate")"
}
net_cut() { # Nothing of the machine is heard any more, not even the FINs of processes that are killed next.
	ip -n "$NET" link del "$1" 2>/dev/null || true
	ip netns del "$NET-$1" 2>/dev/null || true
}
shape() { # $1 machine $2 rate|off
	local n i
	for n in "$NET $1" "$NET-$1 eth0"; do
		read -r n i <<<"$n"
		nsenter --net="/run/netns/$n" tc qdisc del dev "$i" root 2>/dev/null || true
		[ "$2" = off ] || nsenter --net="/run/netns/$n" tc qdisc add dev "$i" root tbf rate "$2" burst 64kb latency 100ms
	done
}
rate() {
	need_vm "${1:-}"; [ $# -ge 2 ] || die "rate: which?"
	[ ! -e "/run/netns/$NET-$1" ] || shape "$1" "$2"
	if [ "$2" = off ]; then rm -f "$VMS/$1/rate"; else echo "$2" >"$VMS/$1/rate"; fi
}
delaylink() { # path of the relay; built once per version of its source
	local src b; src=$(dirname "$SELF")/delaylink
	b=$ROOT/delaylink-$(cat "$src"/*.go | sha256sum | cut -c1-12)
	[ -x "$b" ] || { (cd "$src" && CGO_ENABLED=0 GOFLAGS= go build -o "$b.$$" .) && mv "$b.$$" "$b"; }
	echo "$b"
}
link_off() {
	[ -d "$CG/$1.link" ] || return 0
	kill_group "$CG/$1.link"
	ip -n "$NET" link set "$1" master br0 2>/dev/null || true
	ip -n "$NET" link del "b$1" 2>/dev/null || true
	until_ok 100 tap_gone "c$1"
}
tap_there() { ip -n "$NET" link show "$1" >/dev/null; }
tap_gone() { ! tap_there "$1"; }
link() { # $1 machine $2 delay|off $3 loss percent $4 jitter
	local relay
	need_vm "${1:-}"; [ $# -ge 2 ] || die "link: which delay?"; link_off "$1"
	[ "$2" != off ] || return 0
	relay=$(delaylink)
	mkdir -p "$CG/$1.link"
	ip -n "$NET" link add "b$1" type bridge forward_delay 0
	ip -n "$NET" link set "b$1" up arp off # else it answers for br0, and the way back is a short cut
	( in_group "$1.link"
	  in_net setsid "$relay" -a "a$1" -b "c$1" -delay "$2" -loss "${3:-0}" -jitter "${4:-0s}" </dev/null >>"$VMS/$1/console.log" 2>&1 & )
	until_ok 250 tap_there "c$1" || { tail -n 5 "$VMS/$1/console.log" >&2; die "$1: the relay does not start"; }
	ip -n "$NET" link set "a$1" master br0 up
	ip -n "$NET" link set "c$1" master "b$1" up
	[ ! -e "/run/netns/$NET-$1" ] || ip -n "$NET" link set "$1" master "b$1"
}

# ---------------------------------------------------------------- one machine
prepare() { # $1: machine: its disk (overlay upper), its keys
	local v=$VMS/$1 up
	[ ! -e "$v/ready" ] || return 0
	mkdir -p "$v"
	if [ -n "${LAB_EPHEMERAL:-}" ] || stacked; then mountpoint -q "$v" || mount -t tmpfs -o mode=755 lab "$v"; fi
	mkdir -p "$v/up" "$v/work" "$v/root" "$v/disks"; up=$v/up
	mkdir -p "$up/etc/ssh" && mkdir -m 700 "$up/root" && mkdir -m 700 "$up/root/.ssh"
	install -m 600 "$VMS/id_ed25519.pub" "$up/root/.ssh/authorized_keys"
	mkdir -p "$up/home" && mkdir -m 700 "$up/home/deploy" "$up/home/deploy/.ssh"
	install -m 600 "$VMS/id_ed25519.pub" "$up/home/deploy/.ssh/authorized_keys"
	chown -R 1900:1900 "$up/home/deploy"
	ssh-keygen -q -t ed25519 -N '' -C "$1" -f "$up/etc/ssh/ssh_host_ed25519_key"
	echo "$(ip_of "$1"),$1 $(cut -d' ' -f1,2 "$up/etc/ssh/ssh_host_ed25519_key.pub")" >"$v/known_hosts"
	echo "$1" >"$up/etc/hostname"
	printf '%s\n' '127.0.0.1 localhost' "$(ip_of "$1") $1" >"$up/etc/hosts"
	tr -d - </proc/sys/kernel/random/uuid >"$up/etc/machine-id"; chmod 444 "$up/etc/machine-id"
	touch "$v/ready"
}
start() { # $1: machine
	! running "$1" || return 0
	prepare "$1"; net_vm "$1"
	mkdir -p "$CG/$1" "$CG/$1.sup"
	( in_group "$1.sup"; setsid "$SELF" _supervise "$1" </dev/null >>"$VMS/$1/console.log" 2>&1 & )
}
_supervise() { # outside: (re)boots the machine; reboot(2) in a pid namespace shows as SIGHUP, poweroff as SIGINT
	local rc
	while :; do
		rc=0
		nsenter --net="/run/netns/$NET-$1" unshare --mount --uts --ipc --pid --fork --kill-child=KILL \
			"$SELF" _stage1 "$1" || rc=$?
		[ $rc = 129 ] || break
		kill_group "$CG/$1"; mkdir "$CG/$1" # the cgroups of the last boot would be in the way
		net_cut "$1"; net_vm "$1"           # and so would its sockets in TIME_WAIT
	done
	exit $rc
}
_stage1() { in_group "$1"; exec unshare --cgroup "$SELF" _stage2 "$1"; }
_stage2() { # pid 1 of the machine, still in the host's file tree
	local v=$VMS/$1 r=$VMS/$1/root n
	hostname "$1"
	mount -t overlay overlay -o "lowerdir=$(lower),upperdir=$v/up,workdir=$v/work" "$r"
	for n in "$v"/disks/*/; do [ ! -d "$n" ] || { mkdir -p "$r$(cat "${n%/}.path")"; mount --bind "$n" "$r$(cat "${n%/}.path")"; }; done
	mount -t proc -o nosuid,nodev,noexec proc "$r/proc"
	mount --bind "$r/proc/sys" "$r/proc/sys"; mount --bind "$r/proc/sys/net" "$r/proc/sys/net"
	mount -o remount,bind,ro "$r/proc/sys"         # the machine may tune net.* (its own netns), nothing global
	cat /proc/sys/kernel/random/uuid >"$v/boot_id" # else journald sees one endless boot
	mount --bind "$v/boot_id" "$r/proc/sys/kernel/random/boot_id"
	mount -t sysfs -o nosuid,nodev,noexec,ro sysfs "$r/sys"
	mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$r/sys/fs/cgroup"
	mount -t tmpfs -o mode=755,nosuid,size=4m tmpfs "$r/dev"
	for n in null zero full random urandom tty; do touch "$r/dev/$n"; mount --bind "/dev/$n" "$r/dev/$n"; done
	[ ! -c /dev/fuse ] || { touch "$r/dev/fuse"; mount --bind /dev/fuse "$r/dev/fuse"; }
	mkdir "$r/dev/pts" "$r/dev/shm" "$r/dev/mqueue"
	mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$r/dev/pts"
	mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$r/dev/shm"
	mount -t mqueue mqueue "$r/dev/mqueue"
	ln -s pts/ptmx "$r/dev/ptmx"; ln -s /proc/self/fd "$r/dev/fd"
	ln -s fd/0 "$r/dev/stdin"; ln -s fd/1 "$r/dev/stdout"; ln -s fd/2 "$r/dev/stderr"
	mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$r/run"
	mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$r/tmp"
	ulimit -Hn 20000; ulimit -Sn 1024
	cd "$r"; mkdir -p mnt; pivot_root . mnt
	exec chroot . /bin/sh -c 'umount -l /mnt; exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 /lib/systemd/systemd --system --log-target=journal --show-status=no'
}
wait_ssh() { # $1: machine $2: seconds
	in_net timeout "${2:-30}" bash -c 'until { exec 3<>"/dev/tcp/$0/22" && read -r -t 5 -u 3 b && [[ $b == SSH-2.0* ]]; } 2>/dev/null; do sleep 0.02; done' "$(ip_of "$1")" ||
		{ tail -n 20 "$VMS/$1/console.log" >&2; die "$1: sshd does not answer"; }
}
reboot() {
	local p; p=$(init_pid "$1")
	[ -n "$p" ] || die "$1: is not running"
	kill -s RTMIN+5 "$p" # systemd: start reboot.target
	until_ok 5000 gone "$p" || die "$1: does not go down"
	wait_ssh "$1"
}
stop() { # $1: machine
	local p; p=$(init_pid "$1")
	if [ -n "$p" ]; then
		kill -s RTMIN+4 "$p" # systemd: start poweroff.target
		until_ok 5000 gone "$p" || true
	fi
	crash "$1"
}
crash() {
	net_cut "$1"
	kill_group "$CG/$1" # the supervisor sees SIGKILL, not SIGHUP, and does not boot it again
	kill_group "$CG/$1.sup"
}
disk() { # $1 machine $2 mount point $3 size; a tmpfs of the host, so it outlives a crash of the machine
	local d; [ $# = 3 ] || die "disk: which path and size?"; d=$VMS/$1/disks/$(systemd-escape -p "$2")
	mkdir -p "$d"
	! mountpoint -q "$d" || umount "$d"
	mount -t tmpfs -o "mode=755,size=$3" lab-disk "$d"
	echo "$2" >"$d.path"
}
up() {
	local n=${1:-1} i p; local -a w=()
	base; mkdir -p "$VMS" "$CG"; delegate; net_up
	[ -e "$VMS/id_ed25519" ] || ssh-keygen -q -t ed25519 -N '' -C lab -f "$VMS/id_ed25519"
	for ((i = 1; i <= n; i++)); do { start "vm$i"; wait_ssh "vm$i"; } & w+=($!); done
	for p in "${w[@]}"; do wait "$p" || die "not all machines came up"; done
}
down() {
	local v p; local -a w=()
	for v in $(all); do stop "$v" & w+=($!); done
	for p in "${w[@]}"; do wait "$p" || true; done
	destroy
}
destroy() { # must cope with whatever a lab that was killed half way left behind
	local v m
	kill_group "$CG"
	for v in /run/netns/"$NET"-vm* "/run/netns/$NET"; do [ ! -e "$v" ] || ip netns del "$(basename "$v")"; done
	for v in $(all); do
		for m in "$VMS/$v"/disks/*/ "$VMS/$v"; do ! mountpoint -q "$m" || umount -l "$m"; done
	done
	rm -rf --one-file-system "$VMS"
}
ssh_opts() {
	echo "-i $VMS/id_ed25519 -o IdentitiesOnly=yes -o UserKnownHostsFile=$VMS/$1/known_hosts -o GlobalKnownHostsFile=/dev/null -o StrictHostKeyChecking=yes -o BatchMode=yes -o LogLevel=ERROR"
}

cmd=${1:-help}; shift || true
[ "$cmd" = help ] || [ "$(id -u)" = 0 ] || die "needs root"
case $cmd in
base|clean|up|down|destroy|rate|link) "$cmd" "$@" ;;
crash|stop|reboot|disk) need_vm "${1:-}"; "$cmd" "$@" ;;
start) need_vm "${1:-}"; base; start "$1"; wait_ssh "$1" ;;
ssh) need_vm "${1:-}"; v=$1; shift; exec nsenter --net="/run/netns/$NET" ssh $(ssh_opts "$v") "$USER_@$(ip_of "$v")" "$@" ;;
sftp) need_vm "${1:-}"; v=$1; shift; exec nsenter --net="/run/netns/$NET" sftp $(ssh_opts "$v") "$@" "$USER_@$(ip_of "$v")" ;;
exec) exec nsenter --net="/run/netns/$NET" "$@" ;;
enter) # in a cgroup of the machine, so that a crash takes the command along
	need_vm "${1:-}"; v=$1; shift; p=$(init_pid "$v"); [ -n "$p" ] || die "$v: is not running"
	mkdir -p "$CG/$v/lab.enter"; in_group "$v/lab.enter"; exec nsenter -t "$p" -a "$@" ;;
list) for v in $(all); do echo "$v $(ip_of "$v") pid $(init_pid "$v")"; done ;;
ip) ip_of "$1" ;;
log) need_vm "${1:-}"; cat "$VMS/$1/console.log" ;;
cgroup) echo "$CG" ;;
_supervise|_stage1|_stage2) "$cmd" "$@" ;;
*) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$SELF" ;;
esac
