# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the tests of the guest additions have in common: the ISO in each guest's drive, and what a guest holds."""
import argparse
import glob
import os
import shutil

from lab import Lab
from libvirt_lab import LabError

ISO = "pagefusion-guest-additions.iso"
# What the guest's system changes by itself while it runs.
CHANGING = "/proc /sys /dev /run /tmp /var/log /var/tmp /opt/pagefusion-lab"


class AdditionsLab(Lab):
    """A lab whose guests get the agent from packages."""

    def __init__(self, options, image, out):
        super().__init__(options.build, "", image, out)
        self.packages = options.packages
        self.holder = os.path.join(options.build, "tests/lab/lab-holder")

    def package(self, pattern):
        """The newest of the packages that match."""
        found = sorted(glob.glob(os.path.join(self.packages, pattern)), key=os.path.getmtime)
        if not found:
            raise LabError(f"no {pattern} in {self.packages}: ./run package --out {self.packages}")
        return found[-1]

    def insert_cd(self, guest, domain):
        """The ISO in a drive of the definition."""
        path = os.path.join(self.directory, ISO)
        if not os.path.exists(path):
            shutil.copyfile(self.package(ISO), path)  # QEMU's user may not be able to look into the build directory
            os.chmod(path, 0o644)
        guest.add_cdrom(domain, path)


def add_options(parser):
    """Not for people."""
    parser.add_argument("--packages", required=True, help=argparse.SUPPRESS)


def mount_cd(guest):
    """At /mnt."""
    guest.must("mount -t iso9660 -o ro /dev/sr0 /mnt")


def agent_pid(guest, but=None):
    """The agent's process in the guest; None: there is none, or only that one."""
    found = guest.must("for p in /proc/[0-9]*; do case $(readlink $p/exe) in"
                       " *pagefusion*agent*) echo ${p#/proc/};; esac; done")
    pids = [int(pid) for pid in found.split() if int(pid) != but]
    return pids[0] if pids else None


def file_list(guest, changing=()):
    """{path: what it is} of what the guest's file system holds; of directories only kind, mode and owner."""
    prune = " -o ".join(f"-path {path}" for path in [*CHANGING.split(), *changing])
    listed = guest.must(f"find / -xdev \\( {prune} \\) -prune -o -exec stat -c '%n|%F %a %u %g|%N %s %Y' {{}} +", 240)
    sums = guest.must("find /etc -type f -exec md5sum {} +", 240)
    files = {}
    for line in listed.splitlines():
        path, kind, contents = line.split("|")
        # What is in /etc may be written again with the same bytes.
        whole = not kind.startswith("directory") and not path.startswith("/etc/")
        files[path] = kind + (" " + contents if whole else "")
    for line in sums.splitlines():
        if line.startswith("\\"):  # md5sum's way to say that backslashes in the name are doubled
            line = line[1:].replace("\\\\", "\\")
        digest, path = line.split(None, 1)
        if path in files:
            files[path] += " " + digest
    return files


def differences(before, after):
    """What was added, removed or changed."""
    return sorted([f"new: {path}" for path in after if path not in before]
                  + [f"gone: {path}" for path in before if path not in after]
                  + [f"changed: {path}: {before[path]}: {after[path]}" for path in before
                     if path in after and before[path] != after[path]])
