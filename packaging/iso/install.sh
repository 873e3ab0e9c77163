#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# Installs the page fusion guest additions on any x86-64 Linux, with what every system has: a POSIX shell and a few tools,
# busybox's too. As "uninstall" in /opt/pagefusion-guest it removes them.
#
# Nothing is half done: all new files are written beside their places first (NAME.new~), and when one cannot be, all are
# taken back, and what was installed before stays as it was. Then each is renamed into its place. The manifest holds what
# is to be removed one day, one thing a line: "f" a file or link, "c" the configuration, "d" a directory that was not
# there before (parents first), "i" our lines in inittab, "t" a tool that knows the sysvinit script, "init" the kind of init.
# shellcheck disable=SC2086 # lists are words: nothing that is installed has a blank in its path
set -eu
umask 022
PATH=${PATH:-/usr/bin:/bin}:/usr/sbin:/sbin

prefix=/opt/pagefusion-guest
agent=$prefix/sbin/pagefusion-agent
manifest=$prefix/manifest
config=/etc/pagefusion/agent.conf
port=/dev/virtio-ports/org.pagefusion.agent.0
unit=/etc/systemd/system/pagefusion-agent.service
script=/etc/init.d/pagefusion-agent
oldest_kernel=4.19

root=
staging=no
files=
new_dirs=
old_dirs=
registered=
has_inittab_lines=no

say() { echo "$*"; }
die() {
	echo "install.sh: $*" >&2
	exit 1
}

usage() {
	cat <<-'HELP'
		usage: install.sh [--root DIR]              installs the page fusion guest additions, or a newer version of them
		       install.sh --uninstall [--root DIR]  removes them
		With --root the system whose root file system is mounted at DIR, which does not run; in a chroot none is needed.
	HELP
}

# ---- what kind of system this is

# Whether the system that we install on is the one that runs: not so in a chroot, or with --root.
is_live() {
	[ -z "$root" ] && [ -e /proc/1/root ] &&
		[ "$(stat -L -c %d:%i / 2>/dev/null)" = "$(stat -L -c %d:%i /proc/1/root/ 2>/dev/null)" ]
}

is_running() {
	is_live || return 1
	case $1 in
	systemd) [ -d /run/systemd/system ] ;;
	openrc) [ -e /run/openrc/softlevel ] ;;
	sysvinit | inittab) [ "$(cat /proc/1/comm)" = init ] ;;
	*) false ;;
	esac
}

exists() { [ -e "$root$1" ] || [ -L "$root$1" ]; }

# Where a link as /sbin/init leads to, as far as it says.
init_program() {
	for init in /sbin/init /usr/sbin/init /usr/bin/init; do
		if exists "$init"; then
			readlink "$root$init" || echo "$init"
			return
		fi
	done
}

has_runlevels() { [ -d "$root/etc/rc2.d" ] || [ -d "$root/etc/rc.d/rc2.d" ]; }

find_init() {
	for kind in systemd openrc; do
		if is_running "$kind"; then
			echo "$kind"
			return
		fi
	done
	case $(init_program) in
	*systemd*) echo systemd ;;
	*)
		if exists /sbin/openrc-run || exists /usr/sbin/openrc-run || exists /usr/bin/openrc-run; then
			echo openrc
		elif [ -n "$(init_program)" ] && [ -d "$root/etc/init.d" ] && has_runlevels; then
			echo sysvinit
		elif exists /etc/inittab; then
			echo inittab
		elif exists /lib/systemd/systemd || exists /usr/lib/systemd/systemd; then
			echo systemd
		else
			echo none
		fi
		;;
	esac
}

# ---- what is refused

check_kernel() {
	release=$(uname -r)
	rest=${release#*.}
	minor=${rest%%[!0-9]*}
	if [ "${release%%.*}" -gt "${oldest_kernel%.*}" ] ||
		{ [ "${release%%.*}" -eq "${oldest_kernel%.*}" ] && [ "$minor" -ge "${oldest_kernel#*.}" ]; }; then
		return
	fi
	if is_live; then
		die "this kernel is Linux $release; the agent needs $oldest_kernel or later"
	fi
	say "Note: the agent needs Linux $oldest_kernel or later; here runs $release."
}

check_packages() {
	if [ -e "$root/var/lib/dpkg/status" ] && command -v dpkg-query >/dev/null &&
		dpkg-query --admindir="$root/var/lib/dpkg" -W -f='${db:Status-Status}' pagefusion-guest 2>/dev/null |
		grep -qx installed; then
		die "the package pagefusion-guest is installed; upgrade that, or first: apt-get purge pagefusion-guest"
	fi
	for database in /usr/lib/sysimage/rpm /var/lib/rpm; do
		if [ -d "$root$database" ] && command -v rpm >/dev/null &&
			rpm --dbpath "$root$database" -q pagefusion-guest >/dev/null 2>&1; then
			die "the package pagefusion-guest is installed; upgrade that, or first: rpm -e pagefusion-guest"
		fi
	done
}

check_writable() {
	for dir in /etc /opt /; do
		if [ -d "$root$dir" ] && ! [ -w "$root$dir" ]; then
			# The root directory matters only where something is to be made in it.
			[ "$dir" != / ] || [ ! -d "$root/opt" ] || continue
			die "$root$dir is read-only: mount it writable first (mount -o remount,rw ...)"
		fi
	done
}

check_install() {
	[ "$(uname -m)" = x86_64 ] || die "this machine is $(uname -m); the agent is for x86_64 alone"
	[ -e "$source/files/sbin/pagefusion-agent" ] || die "$source is not complete: copy all of it, or run it from the ISO"
	check_kernel
	check_packages
	check_writable
}

# ---- writing beside, then renaming

# Makes a directory with its parents. A link in another system's root could lead into this one.
new_dir() {
	if [ -d "$root$1" ]; then
		case $(cd "$root$1" && pwd -P)/ in
		"$root"/*) return ;;
		*) die "$root$1 leads out of $root: run install.sh in a chroot there" ;;
		esac
	fi
	new_dir "$(dirname "$1")"
	mkdir "$root$1" || die "could not make the directory $root$1"
	new_dirs="$new_dirs $1"
}

# put FROM PATH MODE
put() {
	new_dir "$(dirname "$2")"
	files="$files $2"
	if ! cp "$1" "$root$2.new~" || ! chmod "$3" "$root$2.new~"; then
		die "could not write $root$2: is there room, and may it be written? Nothing was changed."
	fi
}

put_link() {
	new_dir "$(dirname "$2")"
	files="$files $2"
	rm -f "$root$2.new~"
	ln -s "$1" "$root$2.new~" || die "could not make the link $root$2. Nothing was changed."
}

# reversed WORD...
reversed() {
	words=
	for word; do
		words="$word $words"
	done
	echo "$words"
}

take_back() {
	for path in $files $config $manifest /etc/inittab; do
		rm -f "$root$path.new~"
	done
	for path in $(reversed $new_dirs); do
		rmdir "$root$path" 2>/dev/null || true
	done
}

on_exit() {
	status=$?
	if [ "$staging" = yes ]; then
		take_back
	fi
	exit "$status"
}

# The administrator's stays; what nobody has changed becomes the new one.
put_config() {
	if exists "$config" && ! cmp -s "$root$config" "$root$prefix/doc/agent.conf" &&
		! cmp -s "$root$config" "$source/files/agent.conf"; then
		say "Kept: $config (the new one, for comparison: $prefix/doc/agent.conf)"
		return
	fi
	put "$source/files/agent.conf" "$config" 0644
}

put_program() {
	put "$source/files/sbin/pagefusion-agent" "$agent" 0755
	"$root$agent.new~" --version >/dev/null || die "the agent cannot run here. Nothing was changed."
	put "$source/files/sbin/pagefusion-agent-respawn" "$agent-respawn" 0755
	put "$source/install.sh" "$prefix/uninstall" 0755
	for name in README.txt LICENSE THIRD-PARTY.txt VERSION files/agent.conf; do
		put "$source/$name" "$prefix/doc/${name##*/}" 0644
	done
	put "$source/files/man/pagefusion-agent.8" "$prefix/man/man8/pagefusion-agent.8" 0644
	put "$source/files/man/pagefusion-agent.conf.5" "$prefix/man/man5/pagefusion-agent.conf.5" 0644
	if [ -w "$root/usr/local" ]; then
		put_link "$agent" /usr/local/sbin/pagefusion-agent
	fi
}

# The last line gets an end if it has none.
without_our_lines() {
	sed '/^# pagefusion-guest: begin$/,/^# pagefusion-guest: end$/d' "$1"
	[ -z "$(tail -c 1 "$1")" ] || echo
}

# The lines of an inittab, in front of a copy that has its owner and mode.
put_inittab() {
	has_inittab_lines=yes
	if ! cp -p "$root/etc/inittab" "$root/etc/inittab.new~" ||
		! { without_our_lines "$root/etc/inittab" && printf '%s\n' '# pagefusion-guest: begin' \
			"::respawn:$agent-respawn init" '# pagefusion-guest: end'; } >"$root/etc/inittab.new~"; then
		die "could not write $root/etc/inittab. Nothing was changed."
	fi
}

put_service() {
	case $init in
	systemd)
		put "$source/files/pagefusion-agent.service" "$unit" 0644
		put "$source/files/90-pagefusion-agent.rules" /etc/udev/rules.d/90-pagefusion-agent.rules 0644
		return
		;;
	openrc)
		put "$source/files/pagefusion-agent.openrc" "$script" 0755
		# All that rc-update does.
		put_link "$script" /etc/runlevels/default/pagefusion-agent
		;;
	sysvinit) put "$source/files/pagefusion-agent.sysvinit" "$script" 0755 ;;
	inittab) put_inittab ;;
	esac
	# What the agent makes without systemd.
	new_dir /run
	new_dir /var/log
}

# ---- the scripts of sysvinit

in_root() { if [ -n "$root" ]; then chroot "$root" "$@"; else "$@"; fi; }

has_tool() { in_root sh -c "command -v $1" >/dev/null 2>&1; }

# Debian's tool; that of others; else the links themselves.
register() {
	if has_tool update-rc.d && in_root update-rc.d pagefusion-agent defaults; then
		registered=update-rc.d
	elif has_tool chkconfig && in_root chkconfig --add pagefusion-agent; then
		registered=chkconfig
	elif has_tool insserv && in_root insserv pagefusion-agent; then
		registered=insserv
	else
		link_runlevels
	fi
}

link_runlevels() {
	levels=/etc
	[ -d "$root/etc/rc2.d" ] || levels=/etc/rc.d
	for level in 0 1 2 3 4 5 6; do
		case $level in
		[2345]) link=$levels/rc$level.d/S20pagefusion-agent ;;
		*) link=$levels/rc$level.d/K80pagefusion-agent ;;
		esac
		if [ -d "$root$levels/rc$level.d" ]; then
			ln -sf "$script" "$root$link"
			files="$files $link"
		fi
	done
}

unregister() {
	case $1 in
	update-rc.d) in_root update-rc.d -f pagefusion-agent remove ;;
	chkconfig) in_root chkconfig --del pagefusion-agent ;;
	insserv) in_root insserv -r pagefusion-agent ;;
	esac
}

# ---- starting and stopping

# Those that run the program, also when it was replaced since.
agents() {
	for process in /proc/[0-9]*; do
		case $(readlink "$process/exe" 2>/dev/null) in
		"$agent" | "$agent (deleted)") echo "${process#/proc/}" ;;
		esac
	done
}

stop_agents() {
	for _ in 1 2 3 4 5; do
		running=$(agents)
		[ -n "$running" ] || return 0
		kill -TERM $running 2>/dev/null || true
		sleep 1
	done
	kill -9 $running 2>/dev/null || true
}

reload_systemd() {
	systemctl daemon-reload || true
	if command -v udevadm >/dev/null; then
		udevadm control --reload || true
		udevadm trigger --action=add --subsystem-match=virtio-ports || true
	fi
}

start() {
	is_running "$init" || {
		say "It starts when this system does."
		return
	}
	case $init in
	systemd)
		reload_systemd
		if ! [ -e "$port" ]; then
			say "It starts when the host turns page fusion on for this machine."
			return
		fi
		systemctl restart pagefusion-agent.service
		;;
	openrc) rc-service pagefusion-agent restart ;;
	sysvinit) "$script" restart ;;
	inittab)
		rm -f /run/pagefusion-agent.started
		stop_agents
		kill -HUP 1
		;;
	esac || die "installed, but it could not be started: see above"
	say "Started: $agent --status says how it is doing."
}

stop() {
	is_running "$1" || return 0
	case $1 in
	systemd) systemctl stop pagefusion-agent.service || true ;;
	openrc) rc-service pagefusion-agent stop || true ;;
	sysvinit) "$script" stop || true ;;
	inittab) kill -HUP 1 || true ;;
	esac
	stop_agents
}

# ---- the two tasks

write_manifest() {
	echo "init $init"
	echo "c $config"
	for path in $old_dirs $new_dirs; do
		echo "d $path"
	done
	for path in $files; do
		[ "$path" = "$config" ] || echo "f $path"
	done
	[ "$has_inittab_lines" = no ] || echo "i /etc/inittab"
	[ -z "$registered" ] || echo "t $registered"
}

listed() { sed -n "s/^$1 //p" "$root$manifest"; }

rename_all() {
	for path in $files; do
		mv -f "$root$path.new~" "$root$path"
	done
	if [ "$has_inittab_lines" = yes ]; then
		mv -f "$root/etc/inittab.new~" "$root/etc/inittab"
	fi
}

# What the version before had and this one has not.
remove_outdated() {
	for path in $old_files; do
		case " $files " in
		*" $path "*) ;;
		*) rm -f "$root$path" ;;
		esac
	done
	[ -z "$old_inittab" ] || [ "$has_inittab_lines" = yes ] || remove_inittab_lines
}

install_additions() {
	check_install
	init=$(find_init)
	old_files=
	old_inittab=
	if exists "$manifest"; then
		old_dirs=$(listed d)
		old_files=$(listed f)
		old_inittab=$(listed i)
		say "Upgrading $(cat "$root$prefix/doc/VERSION") to $(cat "$source/VERSION") ($init)."
	else
		say "Installing $(cat "$source/VERSION") in $root$prefix ($init)."
	fi
	staging=yes
	put_program
	put_config
	put_service
	# With room for what is added below.
	write_manifest >"$root$manifest.new~" || die "could not write $root$manifest. Nothing was changed."
	staging=no
	rename_all
	[ "$init" != sysvinit ] || register
	write_manifest >"$root$manifest.new~"
	mv -f "$root$manifest.new~" "$root$manifest"
	remove_outdated
	if [ -z "$root" ] && command -v restorecon >/dev/null; then
		restorecon -R "$prefix" /etc/pagefusion 2>/dev/null || true
	fi
	if [ "$init" = none ]; then
		say "This system's init is not known here. Let it start, after /dev is there: $agent --wait"
	else
		start
	fi
}

remove_config() {
	if cmp -s "$root$config" "$root$prefix/doc/agent.conf"; then
		rm -f "$root$config"
	elif exists "$config"; then
		say "Kept, because it was changed: $config"
	fi
}

remove_inittab_lines() {
	cp -p "$root/etc/inittab" "$root/etc/inittab.new~"
	without_our_lines "$root/etc/inittab" >"$root/etc/inittab.new~"
	mv -f "$root/etc/inittab.new~" "$root/etc/inittab"
}

uninstall_additions() {
	exists "$manifest" || die "there is nothing to remove: no $root$manifest"
	init=$(listed init)
	paths=$(listed f)
	dirs=$(listed d)
	tool=$(listed t)
	[ -z "$(listed i)" ] || remove_inittab_lines
	stop "$init"
	remove_config
	for path in $paths "$manifest" /run/pagefusion-agent.started /run/pagefusion-agent.pid \
		/var/log/pagefusion-agent.log /var/log/pagefusion-agent.log.old; do
		rm -f "$root$path"
	done
	rm -rf "$root/run/pagefusion-agent"
	[ -z "$tool" ] || unregister "$tool" || true
	if [ "$init" = systemd ] && is_running systemd; then
		reload_systemd
		systemctl reset-failed pagefusion-agent.service 2>/dev/null || true
	fi
	for path in "${config%/*}" $(reversed $dirs); do
		rmdir "$root$path" 2>/dev/null || true
	done
	say "Removed."
}

check_root() {
	[ -d "$root" ] || die "--root: there is no directory $root"
	[ -d "$root/etc" ] || die "--root: $root holds no system, it has no /etc"
	root=$(cd "$root" && pwd -P)
	[ "$root" != / ] || root=
}

main() {
	task=install
	source=$(cd "$(dirname "$0")" && pwd -P)
	[ "${0##*/}" != uninstall ] || task=uninstall
	while [ $# -gt 0 ]; do
		case $1 in
		--uninstall) task=uninstall ;;
		--root)
			[ $# -ge 2 ] || die "--root takes a directory"
			root=$2
			shift
			;;
		--help | -h)
			usage
			exit 0
			;;
		*) die "there is no option $1: install.sh --help" ;;
		esac
		shift
	done
	[ "$(id -u)" = 0 ] || die "this needs root: sudo sh $0"
	[ -c /dev/null ] || die "there is no /dev/null: mount /dev first (mount --bind /dev CHROOT/dev)"
	[ -z "$root" ] || check_root
	trap on_exit EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 143' TERM
	case $task in
	install) install_additions ;;
	uninstall) uninstall_additions ;;
	esac
}

main "$@"
