#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Every check that needs no test run; `./run check` calls it after it has built build/dev. All of them run, the exit
# status says whether all of them passed. Logs are in build/log.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.." || exit 1
# Every check is a process group of its own, so that it can be ended as a whole.
set -m

dev=build/dev
jobs=$(nproc)
mkdir -p build/log
mapfile -t sources < <(find common guest-agent host-service proto tests -name '*.[ch]' | sort)
mapfile -t headers < <(find common guest-agent host-service proto tests -name '*.h' | sort)
mapfile -t scripts < <(find run .ci tests packaging -type f ! -path '*/corpus/*' \
	-exec awk 'FNR == 1 && /^#!(\/usr\/bin\/env bash|\/bin\/sh)$/ { print FILENAME }' {} + | sort)
mapfile -t pythons < <(find tests -name '*.py' | sort)
# The translation units as the compiler gets them, without generated code.
mapfile -t units < <(sed -n 's/^ *"file": "\(.*\)",*$/\1/p' "$dev/compile_commands.json" | grep -v "/$dev/" | sort -u)
modules=(gio-unix-2.0 libvirt-qemu libxml-2.0 json-glib-1.0 libprotobuf-c libcrypto libelf cmocka)

child=
trap '[[ -z $child ]] || kill -- "-$child" 2>/dev/null' EXIT
trap 'exit 143' INT TERM HUP


check_clang_format() { clang-format --dry-run -Werror "${sources[@]}"; }
check_clang_tidy() { printf '%s\0' "${units[@]}" | xargs -0 -P "$jobs" -n 2 clang-tidy -p "$dev" --quiet; }

# What -fanalyzer of gcc 12 says wrongly, and why it is wrong:
# - possible-null-*: g_autoptr's cleanup and GLib's checked allocators are not understood (g_malloc never gives NULL)
analyzer_off="-Wno-analyzer-possible-null-argument -Wno-analyzer-possible-null-dereference"
check_gcc_analyzer() {
	cmake -S . -B build/analyzer -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPF_WERROR=ON -DBUILD_TESTING=OFF \
		-DCMAKE_C_COMPILER=gcc "-DCMAKE_C_FLAGS=-fanalyzer $analyzer_off" &&
		cmake --build build/analyzer
}

check_cppcheck() {
	cppcheck --quiet --inline-suppr --error-exitcode=1 --enable=warning,performance,portability -j "$jobs" \
		--suppressions-list=tests/check/cppcheck.txt --project="$dev/compile_commands.json" -i"$dev/generated"
}

check_shellcheck() { shellcheck "${scripts[@]}"; }

check_headers_alone() {
	local header flags failed=0
	read -ra flags <<<"$(pkg-config --cflags "${modules[@]}")"
	for header in "${headers[@]}"; do
		gcc -std=gnu11 -Wall -Wextra -Werror -Wno-unused-parameter -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -I. \
			-I"$dev/generated" "${flags[@]}" -fsyntax-only -x c - <<<"#include \"$header\"" || failed=1
	done
	return "$failed"
}

# The marks of host-service/shim/lock.h.
check_thread_safety() {
	clang -std=gnu11 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -I. -fsyntax-only -Wthread-safety -Werror host-service/shim/*.c
}

check_python() { /usr/bin/python3 -B -c 'import sys; [compile(open(p).read(), p, "exec") for p in sys.argv[1:]]' "${pythons[@]}"; }

# Nothing names a place that exists on one machine only.
check_no_private_paths() {
	! grep -rnIE "(^|[^A-Za-z0-9_.])/(wor[k]|hom[e]|roo[t]|User[s])/" --exclude-dir=build --exclude-dir=.git \
		--exclude=LICENSE .
}

failed=()
for check in clang-format headers-alone thread-safety no-private-paths python shellcheck cppcheck gcc-analyzer clang-tidy; do
	started=$SECONDS
	log=build/log/check-$check.log
	printf '== %s ... ' "$check"
	"check_${check//-/_}" >"$log" 2>&1 </dev/null &
	child=$!
	if wait "$child"; then
		printf 'ok (%d s)\n' $((SECONDS - started))
	else
		printf 'FAILED (%d s), the end of %s:\n' $((SECONDS - started)) "$log"
		tail -n 40 "$log"
		failed+=("$check")
	fi
	child=
done
if [[ ${#failed[@]} -gt 0 ]]; then
	echo "check: failed: ${failed[*]}"
	exit 1
fi
echo "check: everything passed (${#sources[@]} C files)"
