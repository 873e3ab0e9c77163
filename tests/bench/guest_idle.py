# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs inside a guest: PID SECONDS. Prints the CPU time of a process in that time, in ns, and how often it slept.

A program that does all of it, because to ask twice would start one in between.
"""
import json
import re
import sys
import time

CPUCLOCK_SCHED = 2
QUIET_SECONDS = 10  # until a program that has started, as this one, is nothing new any more


def read(pid):
    """(CPU time in ns, voluntary context switches of the first thread) so far."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as f:
        slept = re.search(r"^voluntary_ctxt_switches:\s+(\d+)$", f.read(), re.M).group(1)
    return time.clock_gettime_ns((~pid << 3) | CPUCLOCK_SCHED), int(slept)


def main():
    """The command."""
    pid, seconds = map(int, sys.argv[1:])
    time.sleep(QUIET_SECONDS)
    before = read(pid)
    time.sleep(seconds)
    print(json.dumps([b - a for a, b in zip(before, read(pid))]))


if __name__ == "__main__":
    main()
