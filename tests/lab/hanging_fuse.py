# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs inside a guest: a FUSE file system with one file, /file of FILE_SIZE bytes, at the directory that is argument 1.

It is there to be stopped (SIGSTOP): whoever then asks for anything but bytes that are in the page cache waits.
See fuse(4) and linux/fuse.h for the structures.
"""
import ctypes
import errno
import os
import stat
import struct
import sys

LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE, FLUSH, INIT = 1, 2, 3, 14, 15, 17, 18, 25, 26
BATCH_FORGET = 42
FILE_SIZE = 64 << 10
ROOT, FILE = 1, 2


def attributes(node):
    """struct fuse_attr"""
    mode = stat.S_IFDIR | 0o755 if node == ROOT else stat.S_IFREG | 0o644
    return struct.pack("<6Q10I", node, FILE_SIZE, FILE_SIZE // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def answer(opcode, node, body):
    """(errno, bytes) of a request."""
    if opcode == INIT:
        return 0, struct.pack("<4I2H2I2H8I", 7, 31, 65536, 0, 0, 0, 65536, 1, 0, 0, *[0] * 8)
    if opcode == LOOKUP and body == b"file\0":
        return 0, struct.pack("<4Q2I", FILE, 0, 0, 0, 0, 0) + attributes(FILE)
    if opcode == LOOKUP:
        return errno.ENOENT, b""
    if opcode == GETATTR:
        return 0, struct.pack("<Q2I", 0, 0, 0) + attributes(node)
    if opcode == OPEN:
        return 0, struct.pack("<Q2I", 0, 0, 0)
    if opcode == READ:
        _fh, offset, size = struct.unpack_from("<2QI", body)
        return 0, b"x" * max(0, min(size, FILE_SIZE - offset))
    if opcode == STATFS:
        return 0, bytes(80)
    if opcode in (RELEASE, FLUSH):
        return 0, b""
    return errno.ENOSYS, b""


def serve(device):
    """Until it is unmounted."""
    while True:
        request = os.read(device, 1 << 20)
        _length, opcode, unique, node = struct.unpack_from("<2I2Q", request)
        if opcode in (FORGET, BATCH_FORGET):
            continue
        error, body = answer(opcode, node, request[40:])
        os.write(device, struct.pack("<IiQ", 16 + len(body), -error, unique) + body)


def main():
    """Mounts and serves."""
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"lab", sys.argv[1].encode(), b"fuse", 0, options) != 0:
        raise OSError(ctypes.get_errno(), "mount")
    serve(device)


if __name__ == "__main__":
    main()
