# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether this machine's kernel can be a host: one line that says what is missing, and status 1, when it cannot."""
import errno
import fcntl
import os
import struct
import sys

USERFAULTFD_IOC_NEW = 0xAA00
UFFDIO_API = 0xC018AA3F
UFFD_API = 0xAA
FEATURES = {"write protection": 1 << 0, "EVENT_REMAP": 1 << 2, "UFFDIO_MOVE": 1 << 16}
KERNEL = "take a kernel of 6.8 or later (Debian 12: linux-image-amd64 from bookworm-backports)"


def problem():
    """What is missing and what to do, or None."""
    try:
        device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return "this kernel has no /dev/userfaultfd (Linux 6.1): " + KERNEL
    except PermissionError:
        return "no access to /dev/userfaultfd: run this as root"
    try:
        uffd = fcntl.ioctl(device, USERFAULTFD_IOC_NEW, os.O_CLOEXEC)
        try:
            answer = fcntl.ioctl(uffd, UFFDIO_API, struct.pack("<QQQ", UFFD_API, 0, 0))
        finally:
            os.close(uffd)
    except OSError as error:
        return f"userfaultfd does not work here ({errno.errorcode.get(error.errno)}): " + KERNEL
    finally:
        os.close(device)
    features = struct.unpack("<QQQ", answer)[1]
    missing = [name for name, bit in FEATURES.items() if not features & bit]
    if missing:
        return f"this kernel's userfaultfd lacks {', '.join(missing)}: " + KERNEL
    return None


def main():
    """The command."""
    text = problem()
    if text:
        print(text, file=sys.stderr)
    return 1 if text else 0


if __name__ == "__main__":
    sys.exit(main())
