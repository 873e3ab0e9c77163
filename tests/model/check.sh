#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Checks the model with spin, in a directory of its own.
#
#   check.sh MODEL DIRECTORY COMPILER bytes|waiting [DEFECT]
#
# bytes: no run of the model, however long, breaks an assertion. waiting: every bounded run ends, and then everybody
# has done what he wanted. With a defect the check must fail, and for the right reason: a wrong byte, or a run without
# end.
set -euo pipefail

model=$1 directory=$2 compiler=$3 question=$4 defect=${5:-}
spin_flags=() compiler_flags=(-O2 -DCOLLAPSE -DMEMLIM=2000) run_flags=(-m1000000 -w22)

case $question in
bytes) compiler_flags+=(-DSAFETY) ;;
waiting)
	spin_flags+=(-DBOUNDED)
	compiler_flags+=(-DNP)
	run_flags+=(-l)
	;;
*)
	echo "check.sh: what is $question?"
	exit 2
	;;
esac
if [[ $defect ]]; then
	spin_flags+=(-DDEFECT "-D$defect")
	# The shortest way to a wrong byte is the one to read.
	[[ $question == bytes ]] && compiler_flags+=(-DBFS)
fi

fail() {
	printf 'check.sh: %s\n' "$1"
	exit 1
}

rm -rf "$directory"
mkdir -p "$directory"
cp "$model" "$directory/model.pml"
cd "$directory"
spin -a "${spin_flags[@]}" model.pml
"$compiler" "${compiler_flags[@]}" -o pan pan.c
./pan "${run_flags[@]}" | tee output

# In Spin's words: what was read is not what the writers kept, or QEMU's own mapping (content 4) is not there.
wrong_byte='assertion violated .*(kept|content\[entry\]==4)' no_end='non-progress cycle \(at depth'
if [[ $defect ]]; then
	[[ $question == bytes ]] && expected=$wrong_byte || expected=$no_end
	grep -Eq "$expected" output || fail "the defect was not found"
	spin -t -p "${spin_flags[@]}" model.pml >steps
	echo "The steps that lead there: $directory/steps"
	exit 0
fi
grep -q 'errors: 0' output || fail "an error, see above"
if grep -Eqi 'max search depth too small|search not completed|out of memory|memory limit' output; then
	fail "the search was not complete"
fi
# What is never reached is not checked. (The bounded runs do not reach everything.)
if [[ $question == bytes ]] && grep -E 'state [0-9]+, ' output | grep -v '"-end-"'; then
	fail "these steps were not reached"
fi
