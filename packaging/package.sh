#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Makes the guest packages: package.sh --out DIR. `./run package` calls it after it has installed what this needs.
#
# Two runs give the same bytes, wherever they are made and by whom. So everything is built in a copy of the source whose
# modes do not depend on the umask, no path of the build reaches a program (-ffile-prefix-map), and every time that a
# package carries is SOURCE_DATE_EPOCH: the environment's; else that of git's last commit; else, without git, the time of
# CMakeLists.txt, which `git archive` and tar keep, and which then is the same. That is also the date of the entry in
# Debian's changelog, which is made here: the version stands in project() alone, and what changed in NEWS.md.
set -euo pipefail
tree=$(dirname "$(dirname "$(readlink -f "$0")")")
umask 022
export LC_ALL=C TZ=UTC

die() {
	printf 'package.sh: %s\n' "$*" >&2
	exit 1
}

[[ $# -eq 2 && $1 == --out ]] || die "usage: package.sh --out DIR"
mkdir -p "$2"
out=$(readlink -f "$2")

version=$(sed -nE 's/^project\(pagefusion VERSION ([0-9.]+) .*/\1/p' "$tree/CMakeLists.txt")
[[ -n $version ]] || die "no version in project() of CMakeLists.txt"
if [[ -z ${SOURCE_DATE_EPOCH-} ]]; then
	SOURCE_DATE_EPOCH=$(git -c safe.directory='*' -C "$tree" log -1 --format=%ct 2>/dev/null) ||
		SOURCE_DATE_EPOCH=$(stat -c %Y "$tree/CMakeLists.txt")
fi
export SOURCE_DATE_EPOCH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
deb=pagefusion-guest_${version}_amd64.deb
rpm=pagefusion-guest-$version-1.x86_64.rpm
tarball=pagefusion-guest-$version-x86_64
iso=pagefusion-guest-additions.iso

# What git knows or would add; without git everything but what was built here.
list_source() {
	cd "$tree"
	if [[ -e .git ]]; then
		git -c safe.directory='*' ls-files -z --cached --others --exclude-standard | while IFS= read -rd '' file; do
			[[ ! -e $file ]] || printf '%s\0' "$file"
		done
	else
		find . \( -path ./build -o -path ./dist -o -path ./.cache \) -prune -o -type f -print0
	fi
}

set_times() { find "$1" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +; }

# A .deb depends on what the libraries are called where it was made: those of Debian 12 are known to later releases.
deb_systems() (
	# shellcheck source=/dev/null
	. /etc/os-release
	case $ID-${VERSION_ID-} in
	debian-12) echo "Debian 12 and later, Ubuntu 24.04 and later" ;;
	*) echo "$NAME ${VERSION_ID-} and later" ;;
	esac
)

copy_source() {
	mkdir "$work/source"
	list_source | sort -z | tar -C "$tree" --null -T - -c | tar -C "$work/source" -x --no-same-owner
	chmod -R u=rwX,go=rX "$work/source"
	sed -i "s|@deb_systems@|$(deb_systems)|" "$work/source/packaging/iso/README.txt"
	set_times "$work/source"
}

build_deb() {
	cp -a "$work/source" "$work/pagefusion"
	cp -a "$work/source/packaging/debian" "$work/pagefusion/debian"
	cat >"$work/pagefusion/debian/changelog" <<-CHANGELOG
		pagefusion ($version) unstable; urgency=medium

		  * What changed is in /usr/share/doc/pagefusion-guest/changelog.gz.

		 -- $(sed -n 's/^Maintainer: //p' "$work/source/packaging/debian/control")  $(date -R -d "@$SOURCE_DATE_EPOCH")
	CHANGELOG
	(cd "$work/pagefusion" && DEB_BUILD_OPTIONS="nocheck noautodbgsym parallel=$(nproc)" dpkg-buildpackage -b --no-sign)
	install -m 0644 "$work/$deb" "$out/"
}

# The linker says of three functions that a program without shared libraries needs those of its libc for them: all three
# are in libcrypto, and none is reached. dlopen() loads modules that a configuration of OpenSSL names, which is not read
# (common/digest.c); getaddrinfo() and gethostbyname() are of its sockets, which are not used.
build_static() {
	local map="-ffile-prefix-map=$work=/usr/src"
	CFLAGS=$map cmake -S "$work/source" -B "$work/static" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPF_HARDEN=ON \
		-DPF_HOST=OFF -DPF_STATIC_AGENT=ON -DBUILD_TESTING=OFF -DCMAKE_INSTALL_PREFIX=/usr \
		-DCMAKE_INSTALL_SYSCONFDIR=/etc -DCMAKE_INSTALL_SBINDIR=sbin
	cmake --build "$work/static"
	DESTDIR=$work/stage cmake --install "$work/static" --component guest --strip
}

# The licenses of what is linked into the agent, as Debian has them.
third_party() {
	local package PRETTY_NAME
	# shellcheck source=/dev/null
	. /etc/os-release
	echo "The statically linked agent holds parts of the packages below, of $PRETTY_NAME."
	for package in libc6-dev "libgcc-$(gcc -dumpversion)-dev" libssl-dev libelf-dev libprotobuf-c-dev libinih-dev \
		zlib1g-dev libzstd-dev; do
		printf '\n==== %s %s ====\n\n' "$package" "$(dpkg-query -W -f='${Version}' "$package")"
		cat "/usr/share/doc/$package/copyright"
	done
}

# What install.sh installs, and what is read.
collect_additions() {
	local packaging=$work/source/packaging additions=$work/$tarball
	mkdir -p "$additions/files/sbin" "$additions/files/man"
	install -m 0755 "$work/stage/usr/sbin/pagefusion-agent" "$packaging/iso/pagefusion-agent-respawn" \
		"$additions/files/sbin/"
	install -m 0644 "$packaging/agent.conf" "$packaging/udev/90-pagefusion-agent.rules" "$additions/files/"
	sed 's|/usr/sbin/|/opt/pagefusion-guest/sbin/|' "$packaging/systemd/pagefusion-agent.service" \
		>"$additions/files/pagefusion-agent.service"
	install -m 0755 "$packaging/openrc/pagefusion-agent" "$additions/files/pagefusion-agent.openrc"
	install -m 0755 "$packaging/sysvinit/pagefusion-agent" "$additions/files/pagefusion-agent.sysvinit"
	install -m 0644 "$packaging/man/pagefusion-agent.8" "$packaging/man/pagefusion-agent.conf.5" "$additions/files/man/"
	install -m 0755 "$packaging/iso/install.sh" "$additions/"
	install -m 0644 "$packaging/iso/README.txt" "$work/source/LICENSE" "$additions/"
	third_party >"$additions/THIRD-PARTY.txt"
	echo "$version" >"$additions/VERSION"
}

build_rpm() {
	local doc=$work/stage/usr/share/doc/pagefusion-guest
	mkdir -p "$doc"
	cp "$work/$tarball"/{README.txt,LICENSE,THIRD-PARTY.txt} "$doc/"
	gzip -9n "$work"/stage/usr/share/man/man*/*
	set_times "$work/stage"
	rpmbuild -bb --target x86_64 --define "_topdir $work/rpm" --define "stage $work/stage" \
		--define "version_of_project $version" --define "_buildhost localhost" \
		--define "use_source_date_epoch_as_buildtime 1" \
		"$work/source/packaging/rpm/pagefusion-guest.spec"
	install -m 0644 "$work/rpm/RPMS/x86_64/$rpm" "$out/"
}

build_tarball() {
	tar -C "$work" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --format=gnu \
		-c "$tarball" | gzip -9n >"$out/$tarball.tar.gz"
}

build_iso() {
	cp "$out/$deb" "$out/$rpm" "$work/$tarball/"
	set_times "$work/$tarball"
	rm -f "$out/$iso"
	xorriso -as mkisofs -quiet -V PAGEFUSION -R -J -joliet-long -uid 0 -gid 0 -o "$out/$iso" "$work/$tarball"
}

copy_source
build_deb
build_static
collect_additions
build_rpm
build_tarball
build_iso
