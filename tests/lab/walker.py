# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs inside a guest: finds the pages that fusion could share, by a way of its own.

Shares no code and no library with the agent. One JSON object a line comes in on a virtio-serial port, one goes out:
  {"do": "walk"}                         every resident page of every r-- and r-x mapping of a regular file
  {"do": "pages", "files": [PATTERN]}    every resident page of files
  {"do": "ram"}                          where RAM lies
  {"do": "rescan"}                       has the agent look again
  {"do": "hash", "path": P, "page": N}   what a reader of the file sees in that page now
  {"do": "write", "path": P, "page": N}  overwrites that page in the page cache
  {"do": "map", "files": [PATTERN]}      maps files read-only and keeps them mapped
  {"do": "sums", "files": [PATTERN], "cold": B}  their SHA-256, if so wanted after the page cache was dropped
  {"do": "drop"}                         drops the page cache
  {"do": "churn", "mib": N}              fills memory and gives it back
  {"do": "mount", "device": D, "at": P}  mounts a disk
  {"do": "load", "files": [PATTERN], "at": [P], "rounds": N}  writes and reads disks, see guest_files.py
  {"do": "patch", "files": [PATTERN], "at": [P]}  writes to what load wrote, see guest_files.py
  {"do": "run", "command": C}            status and output of a shell's command line
  {"do": "reboot"}                       begins to shut down, to boot again
Everything is imported before the first answer, so that answering maps nothing new.
"""
import base64
import ctypes
import hashlib
import json
import os
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
import zlib

import guest_files
from guest_files import MAP_FAILED, MAP_SHARED, PAGE, PROT_READ, libc

libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]


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


def runs_of(pfns):
    """{file page: PFN} as runs [first file page, first PFN, length]."""
    runs = []
    for page in sorted(pfns):
        if runs and page == runs[-1][0] + runs[-1][2] and pfns[page] == runs[-1][1] + runs[-1][2]:
            runs[-1][2] += 1
        else:
            runs.append([page, pfns[page], 1])
    return runs


def look(files):
    """Runs of the resident pages of files [(path, name, wanted file pages)], and the guest's RAM ranges."""
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
    result = []
    for path, name, wanted in files:
        if not wanted:
            continue
        try:
            result.append([name, runs_of(resident(path, wanted, pagemap))])
        except OSError:
            continue
    os.close(pagemap)
    return {"files": result, "ram": ram()}


def walk():
    """Files with their pages in runs, and the guest's RAM ranges."""
    return look(read_only_mappings().values())


def pages(request):
    """The same for certain files, mapped or not."""
    return look((path, path, range((os.path.getsize(path) + PAGE - 1) // PAGE))
                for path in guest_files.find(request["files"]))


def ram():
    """[[first PFN, pages]]; what virtio-mem added stands one level deeper, below its device."""
    with open("/proc/iomem", encoding="ascii") as f:
        found = re.findall(r"^ *([0-9a-f]+)-([0-9a-f]+) : System RAM(?: \(virtio_mem\))?$", f.read(), re.M)
    return [[int(a, 16) // PAGE, (int(b, 16) + 1 - int(a, 16)) // PAGE] for a, b in found]


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


def rescan():
    """Has the agent look again."""
    pid = agent_pid()
    if pid is None:
        raise OSError("no agent runs")
    os.kill(pid, signal.SIGHUP)


def sums(request):
    """Of the files that match."""
    if request["cold"]:
        guest_files.drop_caches()
    return {"sums": guest_files.sums(request["files"])}


def load(request):
    """What became wrong on the disks at request["at"], and how many bytes were read."""
    wrong, total = guest_files.load(request["files"], request["at"], request["rounds"], rescan)
    return {"wrong": wrong, "bytes": total}


def patch(request):
    """What became wrong on the disks at request["at"], and how many pages were written."""
    wrong, pages = guest_files.patch(request["files"], request["at"])
    return {"wrong": wrong, "pages": pages}


def map_files(request):
    """Maps them for good; how many there are."""
    paths = guest_files.find(request["files"])
    for path in paths:
        guest_files.map_file(path)
    return {"files": len(paths)}


def mount(request):
    """Mounts a disk."""
    os.makedirs(request["at"], exist_ok=True)
    done = subprocess.run(["mount", "/dev/" + request["device"], request["at"]], capture_output=True, text=True,
                          check=False)
    return {"error": done.stderr} if done.returncode else {}


def write(request):
    """Overwrites a page; its new sum."""
    overwrite(request["path"], request["page"])
    return {"sha256": page_hash(request["path"], request["page"])}


def run(request):
    """Of a command whose output ends with it; what it left behind has to be redirected."""
    done = subprocess.run(request["command"], shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, check=False)
    return {"status": done.returncode, "output": done.stdout.decode(errors="backslashreplace")}


VERBS = {
    "walk": lambda request: walk(),
    "pages": pages,
    "ram": lambda request: {"ram": ram()},
    "rescan": lambda request: rescan(),
    "hash": lambda request: {"sha256": page_hash(request["path"], request["page"])},
    "write": write,
    "map": map_files,
    "sums": sums,
    "drop": lambda request: guest_files.drop_caches(),
    "churn": lambda request: guest_files.churn(request["mib"]),
    "mount": mount,
    "run": run,
    "load": load,
    "patch": patch,
    "reboot": lambda request: {"status": subprocess.run(["systemctl", "reboot"], check=False).returncode},
}


def answer(request):
    """One request's answer."""
    verb = VERBS.get(request["do"])
    return (verb(request) or {}) if verb else {"error": "unknown request"}


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
    map_files({"files": sys.argv[2:]})
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
