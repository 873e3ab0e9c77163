# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs inside a guest: finds the pages that fusion could share, by a way of its own.

Shares no code and no library with the agent. One JSON object a line comes in on a virtio-serial port, one goes out:
  {"do": "walk"}                         every resident page of every r-- and r-x mapping of a regular file
  {"do": "rescan"}                       has the agent look again
  {"do": "hash", "path": P, "page": N}   what a reader of the file sees in that page now
  {"do": "write", "path": P, "page": N}  overwrites that page in the page cache
Everything is imported before the first answer, so that answering maps nothing new.
"""
import base64
import ctypes
import glob
import hashlib
import json
import os
import re
import signal
import socket
import stat
import struct
import sys
import time
import zlib

PAGE = 4096
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
MAP_FAILED = ctypes.c_void_p(-1).value
PROT_READ, MAP_SHARED = 1, 1
held = []  # addresses of mappings that stay


def read_only_mappings():
    """{(device, inode): [map_files path, name, set of file pages]} of all processes."""
    files = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as f:
                lines = f.read().splitlines()
        except OSError:
            continue
        for line in lines:
            span, perms, offset, _device, inode, *name = line.split(None, 5)
            if inode == "0" or perms[:3] not in ("r--", "r-x"):
                continue
            start, end = (int(x, 16) for x in span.split("-"))
            link = f"/proc/{pid}/map_files/{start:x}-{end:x}"
            try:
                info = os.stat(link)
            except OSError:
                continue
            if not stat.S_ISREG(info.st_mode):
                continue
            first = int(offset, 16) // PAGE
            last = min(first + (end - start) // PAGE, (info.st_size + PAGE - 1) // PAGE)
            entry = files.setdefault((info.st_dev, info.st_ino), [link, name[0] if name else "", set()])
            entry[2].update(range(first, last))
    return files


def resident(link, wanted, pagemap):
    """{file page: PFN} of the wanted pages of the file that are in memory."""
    fd = os.open(link, os.O_RDONLY)
    try:
        size = (max(wanted) + 1) * PAGE
        addr = libc.mmap(None, size, PROT_READ, MAP_SHARED, fd, 0)
        if addr == MAP_FAILED:
            return {}
    finally:
        os.close(fd)
    try:
        vec = ctypes.create_string_buffer(size // PAGE)
        if libc.mincore(addr, size, vec) != 0:
            return {}
        flags = vec.raw
        present = [page for page in wanted if flags[page] & 1]
        for page in present:
            ctypes.string_at(addr + page * PAGE, 1)
        entries = os.pread(pagemap, size // PAGE * 8, addr // PAGE * 8)
        pfns = {}
        for page in present:
            (entry,) = struct.unpack_from("<Q", entries, page * 8)
            if entry >> 63:
                pfns[page] = entry & ((1 << 55) - 1)
        return pfns
    finally:
        libc.munmap(addr, size)


def walk():
    """Files with their pages in runs [first file page, first PFN, length], and the guest's RAM ranges."""
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
    result = []
    for link, name, wanted in read_only_mappings().values():
        if not wanted:
            continue
        try:
            pfns = resident(link, wanted, pagemap)
        except OSError:
            continue
        runs = []
        for page in sorted(pfns):
            if runs and page == runs[-1][0] + runs[-1][2] and pfns[page] == runs[-1][1] + runs[-1][2]:
                runs[-1][2] += 1
            else:
                runs.append([page, pfns[page], 1])
        result.append([name, runs])
    os.close(pagemap)
    with open("/proc/iomem", encoding="ascii") as f:
        ram = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) : System RAM$", f.read(), re.M)
    ranges = [[int(a, 16) // PAGE, (int(b, 16) + 1 - int(a, 16)) // PAGE] for a, b in ram]
    return {"files": result, "ram": ranges}


def agent_pid():
    """The agent's process."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm", encoding="ascii") as f:
                if f.read().strip() == "pagefusion-agen":  # as the kernel cuts it
                    return int(pid)
        except OSError:
            continue
    return None


def page_hash(path, page):
    """What read() sees."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return hashlib.sha256(os.pread(fd, PAGE, page * PAGE)).hexdigest()
    finally:
        os.close(fd)


def overwrite(path, page):
    """Inverts the page's bytes in the page cache. The disk below it is this guest's own."""
    fd = os.open(path, os.O_RDWR)
    try:
        old = os.pread(fd, PAGE, page * PAGE)
        os.pwrite(fd, bytes(b ^ 0xff for b in old), page * PAGE)
    finally:
        os.close(fd)


def map_file(path):
    """Maps the file read-only and keeps it mapped."""
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        addr = libc.mmap(None, size, PROT_READ, MAP_SHARED, fd, 0)
        if addr == MAP_FAILED:
            raise OSError(ctypes.get_errno(), "mmap")
        for at in range(0, size, PAGE):
            ctypes.string_at(addr + at, 1)
        held.append(addr)
    finally:
        os.close(fd)


def answer(request):
    """One request's answer."""
    what = request["do"]
    if what == "walk":
        return walk()
    if what == "rescan":
        pid = agent_pid()
        if pid is None:
            return {"error": "no agent runs"}
        os.kill(pid, signal.SIGHUP)
        return {}
    if what == "hash":
        return {"sha256": page_hash(request["path"], request["page"])}
    if what == "write":
        overwrite(request["path"], request["page"])
        return {"sha256": page_hash(request["path"], request["page"])}
    return {"error": "unknown request"}


def tell_systemd():
    """The agent is started after this: its first scan finds all that we map."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(b"READY=1", path.replace("@", "\0", 1))


def main():
    """Serves the port until the guest ends. The further arguments are files to map and keep mapped."""
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.2)  # udev is not there yet
    port = os.open(sys.argv[1], os.O_RDWR)
    for pattern in sys.argv[2:]:
        for path in glob.glob(pattern):
            map_file(path)
    # Maps whatever the first answer would, before anybody counts.
    json.dumps(walk())
    tell_systemd()
    os.write(port, b'{"ready": true}\n')
    buffer = b""
    while True:
        data = os.read(port, 65536)
        if not data:
            time.sleep(0.2)  # nobody at the host's end
            continue
        buffer += data
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            try:
                reply = answer(json.loads(line))
            except OSError as error:
                reply = {"error": str(error)}
            packed = base64.b64encode(zlib.compress(json.dumps(reply).encode()))
            out = b'{"z": "' + packed + b'"}\n'
            while out:
                out = out[os.write(port, out):]


if __name__ == "__main__":
    main()
