# SPDX-License-Identifier: LGPL-2.1-or-later
"""The archive format of an initramfs (Documentation/driver-api/early-userspace/buffer-format.rst)."""
import stat


def cpio(entries):
    """A newc archive of {path: (mode, bytes)}; missing parents are added as directories."""
    full = {}
    for path, entry in entries.items():
        parts = path.strip("/").split("/")
        for i in range(1, len(parts)):
            full.setdefault("/".join(parts[:i]), (stat.S_IFDIR | 0o755, b""))
        full["/".join(parts)] = entry
    out = bytearray()
    for ino, (path, (mode, data)) in enumerate([*full.items(), ("TRAILER!!!", (0, b""))], 1):
        name = path.encode() + b"\0"
        fields = (ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % v for v in fields) + name
        out += b"\0" * (-len(out) % 4) + data
        out += b"\0" * (-len(out) % 4)
    return bytes(out)
