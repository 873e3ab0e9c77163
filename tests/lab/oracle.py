# SPDX-License-Identifier: LGPL-2.1-or-later
"""What could be shared and what the kernel says is shared, found with none of the service's bookkeeping.

The oracle reads the paused guests' RAM through /proc/PID/mem and compares bytes. The kernel's count comes from
/proc/PID/pagemap of the QEMU processes: inside a guest's RAM only fused pages belong to a file, and a frame that
several mappings show has one host page number.
"""
import os
import struct
from collections import Counter

PAGE = 4096
PRESENT, FILE_PAGE = 1 << 63, 1 << 61
PFN_MASK = (1 << 55) - 1


class Snapshot:
    """One guest: where its RAM lies in QEMU and which of its pages the walker found."""

    def __init__(self, guest, walked):
        self.pid = guest.pid()
        self.name = guest.name
        self.ranges = []  # first gfn, number of pages, hva of the first
        for first, pages in walked["ram"]:
            hva = guest.hva(first)
            if guest.hva(first + pages - 1) != hva + (pages - 1) * PAGE:
                raise ValueError(f"{guest.name}: RAM at gfn {first:#x} is not linear in QEMU")
            self.ranges.append((first, pages, hva))
        self.files = walked["files"]
        self.gfns = sorted({pfn + i for _name, runs in self.files for _page, pfn, n in runs for i in range(n)})

    def hva(self, gfn):
        """Host virtual address of a guest page."""
        for first, pages, hva in self.ranges:
            if first <= gfn < first + pages:
                return hva + (gfn - first) * PAGE
        raise ValueError(f"{self.name}: gfn {gfn:#x} is not RAM")

    def read(self, memory, gfn):
        """A page's bytes."""
        return os.pread(memory, PAGE, self.hva(gfn))

    def page_of(self, suffix_match, page):
        """gfn of a page of the first file whose name suffix_match() likes."""
        for name, runs in self.files:
            if suffix_match(name):
                for first, pfn, n in runs:
                    if first <= page < first + n:
                        return pfn + page - first
        return None


def contents(snapshots):
    """Counter of the distinct page contents among the eligible pages of all (paused) guests."""
    counter = Counter()
    for snapshot in snapshots:
        memory = os.open(f"/proc/{snapshot.pid}/mem", os.O_RDONLY)
        try:
            for gfn in snapshot.gfns:
                counter[snapshot.read(memory, gfn)] += 1
        finally:
            os.close(memory)
    return counter


def shareable_kib(snapshots):
    """Sum of copies - 1 over distinct contents."""
    return sum(copies - 1 for copies in contents(snapshots).values()) * PAGE // 1024


def _pages(runs):
    """{file page: gfn} of a file's runs."""
    return {first + i: pfn + i for first, pfn, n in runs for i in range(n)}


class HostPages:
    """What is behind a (paused) guest's pages; to be closed."""

    def __init__(self, snapshot):
        self.snapshot = snapshot
        self.memory = open(f"/proc/{snapshot.pid}/mem", "rb", buffering=0)
        self.pagemap = open(f"/proc/{snapshot.pid}/pagemap", "rb", buffering=0)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.memory.close()
        self.pagemap.close()

    def read(self, gfn):
        """A page's bytes."""
        return self.snapshot.read(self.memory.fileno(), gfn)

    def frame(self, gfn):
        """Its host page number if it is a file's (fused), else None."""
        data = os.pread(self.pagemap.fileno(), 8, self.snapshot.hva(gfn) // PAGE * 8)
        (entry,) = struct.unpack("<Q", data)
        return entry & PFN_MASK if entry & PRESENT and entry & FILE_PAGE else None


def in_common(one, other):
    """
    {name: (pages that both (paused) guests have of files of that name with the same bytes, how many of them are the
    same host page)}
    """
    others = dict(other.files)
    found = {}
    with HostPages(one) as first, HostPages(other) as second:
        for name, runs in one.files:
            pages, other_pages = _pages(runs), _pages(others.get(name, []))
            pairs = [(gfn, other_pages[page]) for page, gfn in pages.items() if page in other_pages]
            same = [(a, b) for a, b in pairs if first.read(a) == second.read(b)]
            frames = [(first.frame(a), second.frame(b)) for a, b in same]
            if same:
                found[name] = len(same), sum(a is not None and a == b for a, b in frames)
    return found


def _store_maps(snapshot):
    """(start, end) of the file mappings inside the guest's RAM, and the number of all maps of the process."""
    inside = []
    n_maps = 0
    low = min(hva for _first, _pages, hva in snapshot.ranges)
    high = max(hva + pages * PAGE for _first, pages, hva in snapshot.ranges)
    with open(f"/proc/{snapshot.pid}/maps", encoding="utf-8", errors="replace") as f:
        for line in f:
            n_maps += 1
            fields = line.split(None, 5)
            start, end = (int(x, 16) for x in fields[0].split("-"))
            if start < high and end > low and len(fields) > 5 and fields[5].startswith("/memfd:"):
                inside.append((start, end))
    return inside, n_maps


def kernel_shared(snapshots):
    """(KiB that the kernel shows as shared: sum of mappings - 1 over host pages, most maps of a QEMU process)."""
    mappings = Counter()
    most_maps = 0
    for snapshot in snapshots:
        inside, n_maps = _store_maps(snapshot)
        most_maps = max(most_maps, n_maps)
        pagemap = os.open(f"/proc/{snapshot.pid}/pagemap", os.O_RDONLY)
        try:
            for start, end in inside:
                data = os.pread(pagemap, (end - start) // PAGE * 8, start // PAGE * 8)
                for (entry,) in struct.iter_unpack("<Q", data):
                    if entry & PRESENT and entry & FILE_PAGE:
                        mappings[entry & PFN_MASK] += 1
        finally:
            os.close(pagemap)
    return sum(n - 1 for n in mappings.values()) * PAGE // 1024, most_maps


def resident_kib(snapshot, lowest_gfn=0):
    """How much of the guest's RAM from there on takes up memory of the host, and how much of that is frames."""
    resident = frames = 0
    with open(f"/proc/{snapshot.pid}/pagemap", "rb", buffering=0) as pagemap:
        for first, pages, hva in snapshot.ranges:
            if first < lowest_gfn:
                continue
            for (entry,) in struct.iter_unpack("<Q", os.pread(pagemap.fileno(), pages * 8, hva // PAGE * 8)):
                resident += entry >> 63
                frames += entry >> 63 & entry >> 61 & 1
    return resident * PAGE // 1024, frames * PAGE // 1024


def host_page(snapshot, gfn):
    """Host page number behind a guest's page if it is a file's (fused), else None."""
    with open(f"/proc/{snapshot.pid}/pagemap", "rb", buffering=0) as pagemap:
        (entry,) = struct.unpack("<Q", os.pread(pagemap.fileno(), 8, snapshot.hva(gfn) // PAGE * 8))
    return entry & PFN_MASK if entry & PRESENT and entry & FILE_PAGE else None


def cpu_seconds(pids, thread_prefix=None):
    """User and system time of processes; with thread_prefix only of their threads of such names."""
    ticks = 0
    for pid in pids:
        try:
            tasks = os.listdir(f"/proc/{pid}/task")
        except OSError:
            continue
        for task in tasks:
            try:
                with open(f"/proc/{pid}/task/{task}/stat", encoding="utf-8", errors="replace") as f:
                    comm, rest = f.read().split("(", 1)[1].rsplit(")", 1)
            except OSError:
                continue
            if thread_prefix is None or comm.startswith(thread_prefix):
                fields = rest.split()
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def children(pid):
    """pid and its children."""
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
        return [pid] + [int(p) for p in f.read().split()]
