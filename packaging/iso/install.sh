#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# Installs the page fusion guest additions on any x86-64 Linux, with what every system has: a POSIX shell and a few tools,
# busybox's too. As "uninstall" in /opt/pagefusion-guest it removes them.
#
# All new files are written beside their places first (NAME.new~), and when one cannot be, all are taken back, and what
# was installed before stays as it was. Then each is renamed into its place, for which no room is needed; who interrupts
# that leaves some of the old files and some of the new, and can run it again, or remove them all: the manifest is the
# first. It holds what is to be removed one day, one thing a line: "f" a file or link, "d" a directory that was not
# there before (parents first), "i" our lines in inittab, "t" a tool that knows the sysvinit script, "init" the kind of
# init. The configuration is not in it.
# shellcheck disable=SC2086 # lists are words: nothing that is installed has a blank in its path
set -eu
umask 022
PATH=${PATH:-/usr/bin:/bin}:/usr/sbin:/sbin

prefix=/opt/pagefusion-guest
agent=$prefix/sbin/pagefusion-agent
manifest=$prefix/manifest
config=/etc/pagefusion/agent.conf
inittab=/etc/inittab
inittab_line=::respawn:$agent-respawn
begin_mark='# pagefusion-guest: begin'
end_mark='# pagefusion-guest: end'
port=/dev/virtio-ports/org.pagefusion.agent.0
unit=/etc/systemd/system/pagefusion-agent.service
script=/etc/init.d/pagefusion-agent
oldest_kernel=4.19
newline='
'

root=
staging=no
files=
new_dirs=
old_dirs=
registered=
inittab_lines=no
inittab_is_staged=no

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
	needed="/etc /opt"
	[ -d "$root/opt" ] || needed="/etc /"
	for dir in $needed; do
		[ -w "$root$dir" ] || die "$root$dir is read-only: mount it writable first (mount -o remount,rw ...)"
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

# Whether a directory is one of that system. A link in another system's root could lead into this one.
is_inside() {
	case $(cd "$root$1" 2>/dev/null && pwd -P)/ in
	"$root"/*) ;;
	*) false ;;
	esac
}

# Makes a directory with its parents.
new_dir() {
	if [ -d "$root$1" ]; then
		is_inside "$1" || die "$root$1 leads out of $root: run install.sh in a chroot there"
		return
	fi
	new_dir "$(dirname "$1")"
	mkdir "$root$1" || die "could not make the directory $root$1"
	new_dirs="$new_dirs $1"
}

# So that PATH.new~ can be made, and then be renamed: what is written or moved through a link goes elsewhere.
make_way() {
	new_dir "$(dirname "$1")"
	[ ! -d "$root$1" ] || die "$root$1 is a directory, or leads to one. Nothing was changed."
	rm -f "$root$1.new~" || die "$root$1.new~ is in the way. Nothing was changed."
}

# put FROM PATH MODE
put() {
	make_way "$2"
	files="$files $2"
	if ! cp "$1" "$root$2.new~" || ! chmod "$3" "$root$2.new~"; then
		die "could not write $root$2: is there room, and may it be written? Nothing was changed."
	fi
}

put_link() {
	make_way "$2"
	files="$files $2"
	ln -s "$1" "$root$2.new~" || die "could not make the link $root$2. Nothing was changed."
}

# put_text TEXT PATH: what is read there again is compared, so that no part can be lost.
put_text() { printf %s "$1" >"$root$2.new~" && [ "$(cat "$root$2.new~" && echo .)" = "$1." ]; }

# What a manifest or a link there leads to outside stays.
remove() { ! is_inside "$(dirname "$1")" || rm -f "$root$1"; }
remove_dir() { ! is_inside "$(dirname "$1")" || rmdir "$root$1" 2>/dev/null || true; }

# reversed WORD...
reversed() {
	words=
	for word; do
		words="$word $words"
	done
	echo "$words"
}

take_back() {
	for path in $files $manifest $inittab; do
		remove "$path.new~"
	done
	remove "$manifest.room~"
	for path in $(reversed $new_dirs); do
		remove_dir "$path"
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

# The text of inittab, all of it: $(...) would drop zero bytes, and the last line gets an end if it has none.
read_inittab() {
	text=$(cat "$root$inittab" && echo .) || return
	text=${text%.}
	[ "$(printf %s "$text" | wc -c)" -eq "$(wc -c <"$root$inittab")" ] || return
	[ -z "$text" ] || text=${text%"$newline"}$newline
}

# What remains of text without our lines. Versions before gave the program an argument.
drop_our_lines() {
	kept=
	marks=
	while [ -n "$text" ]; do
		line=${text%%"$newline"*}
		text=${text#"$line$newline"}
		case $line in
		"$begin_mark" | "$end_mark") marks=$marks$line ;;
		"$inittab_line" | "$inittab_line "*) ;;
		*) kept=$kept$line$newline ;;
		esac
	done
	[ -z "$marks" ] || [ "$marks" = "$begin_mark$end_mark" ]
}

# put_inittab OUR_LINES: they are written over a copy, which has the owner and the mode.
put_inittab() {
	[ -z "$root" ] || [ ! -L "$root$inittab" ] || die "$root$inittab is a link: run install.sh in a chroot there"
	make_way "$inittab"
	read_inittab || die "could not read $root$inittab as text. Nothing was changed."
	drop_our_lines ||
		die "of the lines \"$begin_mark\" and \"$end_mark\" in $root$inittab one is missing, or one is there twice." \
			"Remove them all. Nothing was changed."
	inittab_is_staged=yes
	if ! cp -p "$root$inittab" "$root$inittab.new~" || ! put_text "$kept$1" "$inittab"; then
		die "could not write $root$inittab. Nothing was changed."
	fi
}

# Where another init starts it now, those of before go.
put_lines() {
	if [ "$inittab_lines" = yes ]; then
		put_inittab "$begin_mark$newline$inittab_line$newline$end_mark$newline"
	elif [ -n "$old_inittab" ] && exists $inittab; then
		put_inittab ""
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
	inittab) inittab_lines=yes ;;
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
		if [ -d "$root$levels/rc$level.d" ] && is_inside "$levels/rc$level.d"; then
			remove "$link"
			ln -s "$script" "$root$link"
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

# Those that run the program, also when it was replaced since, and what starts it again.
agents() {
	for process in /proc/[0-9]*; do
		case $(readlink "$process/exe" 2>/dev/null) in
		"$agent" | "$agent (deleted)") echo "${process#/proc/}" ;;
		*sh | *busybox*)
			case $(tr '\0' ' ' 2>/dev/null <"$process/cmdline") in
			*" $agent-respawn ") echo "${process#/proc/}" ;;
			esac
			;;
		esac
	done
}

# Those that run now: init may start others at once.
stop_agents() {
	running=$(agents)
	for signal in TERM KILL; do
		for process in $running; do
			kill -$signal "$process" 2>/dev/null || true
		done
		for _ in 1 2 3 4 5 6 7 8 9 10; do
			[ -n "$running" ] || return 0
			sleep 1
			running=$(for process in $running; do [ ! -e "/proc/$process/exe" ] || echo "$process"; done)
		done
	done
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
	inittab)
		kill -HUP 1 || true
		# busybox's looks up once a second. Before, it would start what we end here.
		sleep 2
		;;
	esac
	stop_agents
}

# ---- the two tasks

# list_things PATH...: with these as well.
list_things() {
	echo "init $init"
	for path in $old_dirs $new_dirs; do
		echo "d $path"
	done
	for path in $files "$@"; do
		[ "$path" = "$config" ] || echo "f $path"
	done
	[ "$inittab_lines$old_inittab" = no ] || echo "i $inittab"
	[ -z "$registered" ] || echo "t $registered"
}

listed() { sed -n "s/^$1 //p" "$root$manifest" || die "could not read $root$manifest"; }

# put_manifest PATH...
put_manifest() {
	make_way "$manifest"
	put_text "$(list_things "$@")$newline" "$manifest"
}

move_manifest() { mv -f "$root$manifest.new~" "$root$manifest"; }

# After a power cut, what has its new name before it is on the disk may be empty.
move_inittab() {
	sync
	mv -f "$root$inittab.new~" "$root$inittab"
}

# The manifest first: whatever ends this, what is there can be removed. It holds what the version before had, too.
rename_all() {
	sync
	move_manifest
	for path in $files; do
		mv -f "$root$path.new~" "$root$path"
	done
	[ "$inittab_is_staged" = no ] || move_inittab
}

# What the version before had and this one has not.
outdated() {
	for path in $old_files; do
		case " $files " in
		*" $path "*) ;;
		*) echo "$path" ;;
		esac
	done
}

remove_outdated() {
	for path in $(outdated); do
		remove "$path"
	done
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
		registered=$(listed t)
		say "Upgrading $(cat "$root$prefix/doc/VERSION") to $(cat "$source/VERSION") ($init)."
	else
		say "Installing $(cat "$source/VERSION") in $root$prefix ($init)."
	fi
	staging=yes
	put_program
	put_config
	put_service
	put_lines
	# With room for another one, which is written when everything is in its place.
	gone=$(outdated)
	remove "$manifest.room~"
	if ! put_manifest $gone || ! cp "$root$manifest.new~" "$root$manifest.room~"; then
		die "could not write $root$manifest. Nothing was changed."
	fi
	staging=no
	rename_all
	registered=
	[ "$init" != sysvinit ] || register
	remove_outdated
	old_inittab=
	remove "$manifest.room~"
	put_manifest || die "installed, but $root$manifest could not be written: run this again when there is room"
	move_manifest
	sync
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
		remove "$config"
	elif exists "$config"; then
		say "Kept, because it was changed: $config"
	fi
}

remove_inittab_lines() {
	exists $inittab || return 0
	staging=yes
	put_inittab ""
	staging=no
	move_inittab
}

uninstall_additions() {
	exists "$manifest" || die "there is nothing to remove: no $root$manifest"
	init=$(listed init)
	paths=$(listed f)
	dirs=$(listed d)
	tool=$(listed t)
	lines=$(listed i)
	[ -z "$lines" ] || remove_inittab_lines
	stop "$init"
	remove_config
	for path in $paths /run/pagefusion-agent.pid \
		/var/log/pagefusion-agent.log /var/log/pagefusion-agent.log.old; do
		remove "$path"
	done
	! is_inside /run || rm -rf "$root/run/pagefusion-agent"
	[ -z "$tool" ] || unregister "$tool" || true
	if [ "$init" = systemd ] && is_running systemd; then
		reload_systemd
		systemctl reset-failed pagefusion-agent.service 2>/dev/null || true
	fi
	# What an interrupted one has left.
	files="$paths $config"
	take_back
	sync
	remove "$manifest"
	for path in "${config%/*}" $(reversed $dirs); do
		remove_dir "$path"
	done
	sync
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
