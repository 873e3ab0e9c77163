# SPDX-License-Identifier: LGPL-2.1-or-later
"""The machine that is measured on: what it is, what else it does meanwhile, and a memory cgroup of the bench's own."""
import ctypes
import os
import re
import signal
import ssl
import subprocess
import time

CLONE_NEWNS = 0x00020000
CPUCLOCK_SCHED = 2
PR_SET_PDEATHSIG = 1
CGROUPS = "/sys/fs/cgroup"
libc = ctypes.CDLL(None, use_errno=True)


class BenchError(Exception):
    """Something could not be measured; the message says why."""


def read_text(path):
    """A small file."""
    with open(path, encoding="utf-8", errors="replace") as f:
        return f.read()


def own_run_directory():
    """
    From here on this process and its children have a /run of their own: the agent's status socket does not meet that of
    an agent which the machine may run.
    """
    if libc.unshare(CLONE_NEWNS) != 0:
        raise BenchError("unshare: " + os.strerror(ctypes.get_errno()))
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", "/run"], check=True)


def die_with_parent():
    """For a child, before it executes something."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def facts():
    """What figures depend on."""
    cpuinfo = read_text("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)$", cpuinfo, re.M)
    flags = re.search(r"^flags\s*: (.*)$", cpuinfo, re.M)
    generations = "/sys/kernel/mm/lru_gen/enabled"
    return {
        "cpu": model.group(1) if model else "unknown",
        "cpus": os.cpu_count(),
        "sha_instructions": bool(flags) and "sha_ni" in flags.group(1).split(),
        "kernel": os.uname().release,
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "libcrypto": ssl.OPENSSL_VERSION,
        "mglru": os.path.exists(generations) and int(read_text(generations), 16) & 1 == 1,
    }


def ram_ranges():
    """[(first PFN, last)] of System RAM."""
    found = re.findall(r"^ *([0-9a-f]+)-([0-9a-f]+) : System RAM(?: \(virtio_mem\))?$", read_text("/proc/iomem"), re.M)
    return [(int(a, 16) >> 12, int(b, 16) >> 12) for a, b in found]


def on_disk(path):
    """Whether what lies there can be evicted and read again."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", path], check=True, capture_output=True, text=True).stdout.strip()
    return kind not in ("tmpfs", "ramfs")


def vmstat(name):
    """A counter of /proc/vmstat."""
    return int(re.search(rf"^{name} (\d+)$", read_text("/proc/vmstat"), re.M).group(1))


def cpu_ns(pid):
    """CPU time of a process, all threads, those that have ended too."""
    return time.clock_gettime_ns((~pid << 3) | CPUCLOCK_SCHED)


class Load:
    """What all of the machine does from here on."""

    def __init__(self):
        self.started = time.monotonic()
        self.before = self._read()

    @staticmethod
    def _read():
        text = read_text("/proc/stat")
        ticks = [int(x) for x in re.search(r"^cpu +(.*)$", text, re.M).group(1).split()[:8]]
        idle = ticks[3] + ticks[4]
        return sum(ticks) - idle, int(re.search(r"^processes (\d+)$", text, re.M).group(1))

    def others(self, own_ns):
        """(percent of one CPU that others used, processes and threads that were started); own_ns is ours."""
        busy, forks = self._read()
        seconds = time.monotonic() - self.started
        busy_s = (busy - self.before[0]) / os.sysconf("SC_CLK_TCK")
        return round(max(0.0, busy_s - own_ns / 1e9) / seconds * 100, 2), forks - self.before[1]


class MemoryCgroup:
    """A memory cgroup with a limit, of either version; close() takes it away, when nobody is in it any more."""

    def __init__(self, limit):
        unified = os.path.join(CGROUPS, "cgroup.controllers")
        self.enabled = None
        if os.path.exists(unified) and "memory" in read_text(unified).split():
            self._enable()
            base, name = CGROUPS, "memory.max"
        elif os.path.isdir(os.path.join(CGROUPS, "memory")):
            base, name = os.path.join(CGROUPS, "memory"), "memory.limit_in_bytes"
        else:
            raise BenchError(f"no memory controller below {CGROUPS}")
        self.path = os.path.join(base, f"pagefusion-bench-{os.getpid()}")
        os.mkdir(self.path)
        self._write(self.path, name, str(limit))

    @staticmethod
    def _write(directory, name, text):
        with open(os.path.join(directory, name), "w", encoding="ascii") as f:
            f.write(text)

    def _enable(self):
        if "memory" not in read_text(os.path.join(CGROUPS, "cgroup.subtree_control")).split():
            self._write(CGROUPS, "cgroup.subtree_control", "+memory")
            self.enabled = True

    def add(self, pid):
        """Moves a process into it."""
        self._write(self.path, "cgroup.procs", str(pid))

    def close(self):
        """Its pages go to its parent."""
        deadline = time.monotonic() + 10
        while os.path.isdir(self.path):
            try:
                os.rmdir(self.path)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        if self.enabled:
            self._write(CGROUPS, "cgroup.subtree_control", "-memory")
