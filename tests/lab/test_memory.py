# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two real guests whose memory QEMU takes, gives, moves and reads for itself while it is shared.

After each such event every byte of the guests' files is still right, both as the page cache holds it and as it comes
from the disk; what was shared is shared again; and the service's numbers are those of the kernel. The tests run in the
order of their names, in one boot, and the first that fails is the last.
"""
import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import unittest
import xml.etree.ElementTree as ET

import image as lab_image
import oracle
from guest import ask_all
from lab import Lab, Output, add_options
from libvirt_lab import SIGNALS, LabError, Setting, die_with_parent, enter_namespaces, wait_until
from product import REVOKED, SHARED

GUEST_MIB = 512
BALLOON_MIB = 288
PLUG_MIB = 256
PLUGGED_GFN = 1 << 20  # at 4 GiB
CHURN_MIB = 200
DISK_MIB = 96
DISK_ROUNDS = 3
# A part of /usr that a guest of BALLOON_MIB can still hold, and a part of that for the disks.
FILES = ["/usr/lib/x86_64-linux-gnu/*", "/usr/sbin/*", "/usr/lib/python3.*/*.py"]
DISK_FILES = ["/usr/lib/x86_64-linux-gnu/lib[a-g]*"]
DISKS = {"vdb": {"cache": "none", "io": "native"}, "vdc": {"cache": "none", "io": "io_uring"}}
VIRTIO_MEM = """<memory model='virtio-mem'>
  <target>
    <size unit='MiB'>{mib}</size><node>0</node><block unit='MiB'>2</block><requested unit='MiB'>0</requested>
  </target>
</memory>"""
EVENT_SECONDS = 240  # for what takes a few on an idle machine
SETTLE_SECONDS = 20
# Where the kernel pins what O_DIRECT reads into, which is what the product asks for, as stat(1) calls them.
DIRECT_IO = {"ext2/ext3", "xfs", "btrfs"}
LAB = None
DISKS_FIT = False


def file_system(path):
    """Its type."""
    return subprocess.run(["stat", "-f", "-c", "%T", path], check=True, capture_output=True, text=True).stdout.strip()


def define(guest, domain):
    """What the guests have beyond those of the demo."""
    domain.find("os/cmdline").text += " memhp_default_state=online_movable"
    domain.insert(1, ET.Element("maxMemory", slots="1", unit="MiB"))
    domain.find("maxMemory").text = str(GUEST_MIB + PLUG_MIB)
    cpu = domain.find("cpu")
    if cpu is None:
        cpu = ET.SubElement(domain, "cpu")
    ET.SubElement(ET.SubElement(cpu, "numa"), "cell", id="0", cpus="0", memory=str(GUEST_MIB), unit="MiB")
    domain.find("devices/memballoon").set("freePageReporting", "on")
    for target, driver in DISKS.items() if DISKS_FIT else ():
        path = os.path.join(guest.directory, target + ".raw")
        with open(path, "wb") as f:
            f.truncate(DISK_MIB << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", path], check=True)
        guest.add_disk(domain, target, driver, path)


class Reader(threading.Thread):
    """Takes what comes to a socket until its writer ends."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.size = 0
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        os.chmod(path, 0o777)
        self.listener.listen()

    def __enter__(self):
        self.start()
        return self

    def run(self):
        connection, _address = self.listener.accept()
        with connection:
            while data := connection.recv(1 << 20):
                self.size += len(data)

    def __exit__(self, *_):
        self.join(10)
        self.listener.close()


class Memory(unittest.TestCase):
    """Each test is an event and ends with look()."""

    @classmethod
    def setUpClass(cls):
        LAB.out.say("starting libvirtd, pagefusiond and two guests")
        # Pages that were written to are taken again at once: the more changes, the better.
        LAB.start("--revoke-delay-ms", "0")
        for number in (1, 2):
            LAB.add_guest(f"pf-memory-{number}", GUEST_MIB, define)
        LAB.boot()
        cls.wanted, other = (reply["sums"] for reply in ask_all(LAB.guests, "sums", files=FILES, cold=True))
        assert cls.wanted == other and len(cls.wanted) > 300
        cls.least_kib = 0
        cls.fuse(cls)
        # Not all of it comes back soon: a page that the kernel holds at the moment is tried again later.
        cls.least_kib = LAB.samples.take()["host"][SHARED] * 17 // 20
        assert cls.least_kib > 30 << 10

    def fuse(self):
        """Maps all files, has the agents look, waits until that is shared."""
        ask_all(LAB.guests, "map", files=FILES)
        ask_all(LAB.guests, "rescan")
        LAB.samples.forget()
        wait_until(lambda: LAB.samples.take()["host"][SHARED] >= self.least_kib and LAB.samples.stable(2),
                   EVENT_SECONDS, f"{self.least_kib} KiB to be shared")

    def compare_bytes(self, cold):
        """Every file of every guest is what it was."""
        for guest, reply in zip(LAB.guests, ask_all(LAB.guests, "sums", files=FILES, cold=cold)):
            wrong = [path for path in {**self.wanted, **reply["sums"]}
                     if self.wanted.get(path) != reply["sums"].get(path)]
            self.assertEqual(wrong, [], guest.name)

    def compare_metrics(self):
        """The service's number and the kernel's, in KiB; the guests stand still meanwhile."""
        numbers = (0, 0)
        snapshots = LAB.snapshots()

        def agree():
            nonlocal numbers
            metrics, kernel = LAB.samples.take()["host"][SHARED], oracle.kernel_shared(snapshots)[0]
            numbers = metrics, kernel
            return abs(metrics - kernel) <= kernel / 100
        LAB.pause()
        try:
            wait_until(agree, SETTLE_SECONDS, "the metrics to say what the kernel says")
        except LabError as error:
            raise LabError(f"{error}: {numbers[0]} KiB are shared, and {numbers[1]} KiB") from error
        finally:
            LAB.resume()
        return numbers

    def look(self, what):
        """After an event."""
        self.compare_bytes(cold=False)
        self.compare_metrics()
        self.compare_bytes(cold=True)
        self.fuse()
        metrics, kernel = self.compare_metrics()
        self.compare_bytes(cold=False)
        LAB.out.say(f"{what}: {len(self.wanted)} files are right in each guest, {metrics} KiB are shared "
                    f"(the kernel says {kernel} KiB)")

    def test_1_balloon(self):
        for mib in (BALLOON_MIB, GUEST_MIB):
            for guest in LAB.guests:
                LAB.libvirt.virsh("setmem", guest.name, f"{mib}M", "--live")
            for guest in LAB.guests:
                wait_until(lambda g=guest, m=mib: g.balloon_mib() == m, EVENT_SECONDS,
                           f"{guest.name} to have {mib} MiB")
            if mib == BALLOON_MIB:
                for snapshot in LAB.snapshots():
                    self.assertLessEqual(oracle.resident_kib(snapshot)[0] >> 10, mib)
            self.look(f"balloon to {mib} MiB")

    def test_2_free_page_reporting(self):
        snapshots = LAB.snapshots()
        frames = [oracle.resident_kib(s)[1] for s in snapshots]
        for guest in LAB.guests:
            guest.reset_peak()
        # Frames are given up because what they hold is free in the guest, not because it was overwritten.
        ask_all(LAB.guests, "drop")
        for snapshot, before in zip(snapshots, frames):
            wait_until(lambda s=snapshot, b=before: oracle.resident_kib(s)[1] <= b * 3 // 4, EVENT_SECONDS,
                       f"{snapshot.name}'s free pages to be no frames any more")
        self.compare_metrics()
        ask_all(LAB.guests, "churn", mib=CHURN_MIB)
        for guest in LAB.guests:
            wait_until(lambda g=guest: g.peak_kib() - g.resident_kib() > CHURN_MIB << 9, EVENT_SECONDS,
                       f"{guest.name}'s memory to go back to the host")
        self.look("free page reporting")

    def test_3_plug(self):
        for guest in LAB.guests:
            device = ET.fromstring(VIRTIO_MEM.format(mib=PLUG_MIB))
            LAB.libvirt.virsh("attach-device", guest.name, guest.write_xml("memory", device), "--live")
        self.request(PLUG_MIB)
        self.look(f"virtio-mem plugged {PLUG_MIB} MiB")
        for snapshot in LAB.snapshots():
            _resident, frames = oracle.resident_kib(snapshot, PLUGGED_GFN)
            self.assertGreater(frames, 10 << 10, "KiB of the plugged memory are shared")

    def test_4_reboot(self):
        LAB.libvirt.virsh("reset", LAB.guests[0].name)
        LAB.guests[1].ask("reboot")
        LAB.wait_booted(LAB.guests)
        self.look("reset and reboot")

    def test_5_unplug(self):
        self.request(0)
        self.look("virtio-mem unplugged")

    @staticmethod
    def request(mib):
        """Has the guests plug memory, or unplug it."""
        for guest in LAB.guests:
            LAB.libvirt.virsh("update-memory-device", guest.name, "--live", "--requested-size", f"{mib}M")
        for guest in LAB.guests:
            wait_until(lambda g=guest: g.plugged_mib() == mib, EVENT_SECONDS, f"{guest.name} to have {mib} MiB plugged")

    def test_6_disks(self):
        if not DISKS_FIT:
            self.skipTest("no directory on ext4, xfs or btrfs")
        places = ["/mnt/" + target for target in DISKS]
        for target, place in zip(DISKS, places):
            ask_all(LAB.guests, "mount", device=target, at=place)
        before = LAB.samples.take()["host"][REVOKED]
        replies = ask_all(LAB.guests, "load", at=places, files=DISK_FILES, rounds=DISK_ROUNDS)
        for guest, reply in zip(LAB.guests, replies):
            self.assertEqual(reply["wrong"], [], guest.name)
            self.assertGreater(reply["bytes"], DISK_ROUNDS << 24, guest.name)
        under_load = LAB.samples.take()["host"][REVOKED] - before
        self.assertGreater(under_load, 1000)
        self.fuse()

        replies = ask_all(LAB.guests, "patch", at=places, files=DISK_FILES)
        for guest, reply in zip(LAB.guests, replies):
            self.assertEqual(reply["wrong"], [], guest.name)
        patched = LAB.samples.take()["host"][REVOKED] - before - under_load
        self.assertGreater(patched, sum(reply["pages"] for reply in replies) // 2)
        self.look(f"disks with cache=none, io=native and io=io_uring ({under_load} pages revoked under load, "
                  f"{patched} by writes in their middle)")

    def test_7_background_snapshot(self):
        guest = LAB.guests[0]
        path = os.path.join(guest.directory, "snapshot.socket")
        capability = {"capability": "background-snapshot", "state": True}
        # QEMU's user may watch writes by the kernel too, as whoever makes such snapshots has to permit.
        with Setting("/proc/sys/vm/unprivileged_userfaultfd", "1"), Reader(path) as reader:
            guest.qmp("migrate-set-capabilities", capabilities=[capability])
            guest.tell("sums", files=FILES, cold=True)  # so that the guest writes meanwhile
            guest.qmp("migrate", uri="unix:" + path)
            ended = wait_until(lambda: self.migration_ended(guest), EVENT_SECONDS, "the snapshot to end")
            guest.qmp("migrate-set-capabilities", capabilities=[{**capability, "state": False}])
        self.assertEqual(ended["status"], "completed", ended)
        self.assertGreater(reader.size >> 20, 64)
        self.assertEqual(guest.hear("sums", EVENT_SECONDS)["sums"], self.wanted)
        self.look(f"background snapshot of {reader.size >> 20} MiB")

    @staticmethod
    def migration_ended(guest):
        """How, or None."""
        now = guest.qmp("query-migrate")
        return now if now.get("status") in ("completed", "failed", "cancelled") else None


def main():
    """The command."""
    global LAB, DISKS_FIT
    parser = argparse.ArgumentParser()
    add_options(parser)
    options = parser.parse_args()
    if options.with_parent:
        die_with_parent()
    out = Output()
    image = lab_image.ensure_image(options.cache, options.image_log, out.say)
    enter_namespaces()
    for signum in SIGNALS:
        signal.signal(signum, lambda number, _frame: sys.exit(128 + number))
    places = [path for path in ("/tmp", options.cache, "/var/tmp") if file_system(path) in DIRECT_IO]
    DISKS_FIT = bool(places)
    LAB = Lab(options.build, options.agent_unit, image, out, *places[:1])
    try:
        result = unittest.main(argv=sys.argv[:1], failfast=True, exit=False).result
        if not result.wasSuccessful():
            LAB.explain()
        return 0 if result.wasSuccessful() else 1
    finally:
        LAB.close()


if __name__ == "__main__":
    sys.exit(main())
