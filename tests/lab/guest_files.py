# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the walker does with files inside a guest: maps them, sums their bytes, keeps disks busy with them.

A file's bytes are summed as a reader sees them: from the page cache as it is, or after the kernel was made to drop
all of it that it can, which is then read from the disk into pages that may have been shared a moment ago.
"""
import ctypes
import glob
import hashlib
import mmap
import os
import stat

PAGE = 4096
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
MAP_FAILED = ctypes.c_void_p(-1).value
PROT_READ, MAP_SHARED, MADV_DONTNEED = 1, 1, 4
PATCH = b"written in place"
held = {}  # path: (address, size) of the mappings that stay


def find(patterns):
    """Paths of the regular files that match, in order; links are left out."""
    paths = {path for pattern in patterns for path in glob.glob(pattern)}
    return sorted(path for path in paths if stat.S_ISREG(os.lstat(path).st_mode))


def map_file(path):
    """Maps the file read-only, all of it present, and keeps it mapped."""
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        if path in held or size == 0:
            return
        addr = libc.mmap(None, size, PROT_READ, MAP_SHARED, fd, 0)
        if addr == MAP_FAILED:
            raise OSError(ctypes.get_errno(), "mmap")
        held[path] = (addr, size)
        for at in range(0, size, PAGE):
            ctypes.string_at(addr + at, 1)
    finally:
        os.close(fd)


def unmap_file(path):
    """Gives up what map_file() mapped."""
    if path in held:
        libc.munmap(*held.pop(path))


def drop_caches():
    """
    All page cache but what running programs have mapped; what we have mapped stays so, without its pages. Then what
    is free is made to lie together: free page reporting speaks of 2 MiB or nothing.
    """
    os.sync()
    for addr, size in held.values():
        libc.madvise(addr, size, MADV_DONTNEED)
    for name, value in (("drop_caches", "3"), ("compact_memory", "1")):
        with open("/proc/sys/vm/" + name, "w", encoding="ascii") as f:
            f.write(value)


def file_sum(path):
    """SHA-256 of what read() gives."""
    with open(path, "rb", buffering=0) as f:
        digest = hashlib.sha256()
        while data := f.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


def sums(patterns):
    """{path: SHA-256} of the files that match."""
    return {path: file_sum(path) for path in find(patterns)}


def churn(mib):
    """Fills so much memory and gives it back."""
    with mmap.mmap(-1, mib << 20) as memory:
        for _ in range(mib):
            memory.write(b"\x5a" * (1 << 20))


def _copy(source, target):
    with open(source, "rb") as from_file, open(target, "wb") as to_file:
        while data := from_file.read(1 << 20):
            to_file.write(data)
        to_file.flush()
        os.fsync(to_file.fileno())


def _read(path):
    with open(path, "rb") as f:
        return bytearray(f.read())


def _copies(patterns, directories):
    """{copy: what it is a copy of}"""
    return {os.path.join(directory, os.path.basename(path)): path
            for path in find(patterns) for directory in directories}


def _read_back(expected):
    """Names of the files whose SHA-256 is another one, and the bytes read."""
    wrong = [path for path, digest in expected.items() if file_sum(path) != digest]
    return wrong, sum(os.path.getsize(path) for path in expected)


def load(patterns, directories, rounds, rescan):
    """
    Copies the files that match to disks again and again, has the agent look at the copies, which are mapped and stay
    so, and reads them back from there. Returns the names of those that differ from what was copied, and the bytes read.
    """
    wrong, total = [], 0
    copies = _copies(patterns, directories)
    expected = {copy: file_sum(source) for copy, source in copies.items()}
    for _ in range(rounds):
        for copy, source in copies.items():
            unmap_file(copy)
            _copy(source, copy)
            map_file(copy)
        rescan()
        for _ in range(2):  # what the agent has not seen yet, and what is shared by now
            drop_caches()
            differ, size = _read_back(expected)
            wrong += differ
            total += size
    return wrong, total


def patch(patterns, directories):
    """
    Writes a few bytes into every other page of the copies that load() made. Returns the names of those that then differ
    from what they should be, in the page cache or on the disk, and how many pages were written.
    """
    expected, pages = {}, 0
    for copy, source in _copies(patterns, directories).items():
        data = _read(source)
        with open(copy, "r+b", buffering=0) as f:
            for at in range(PAGE // 2, len(data) - len(PATCH), 2 * PAGE):
                data[at:at + len(PATCH)] = PATCH
                os.pwrite(f.fileno(), PATCH, at)
                pages += 1
        expected[copy] = hashlib.sha256(data).hexdigest()
    wrong, _size = _read_back(expected)
    drop_caches()
    return wrong + _read_back(expected)[0], pages
