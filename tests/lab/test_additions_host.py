# SPDX-License-Identifier: LGPL-2.1-or-later
"""The CD with the guest additions, in and out of drives of a real libvirt's VMs, which have no operating system."""
import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import xml.etree.ElementTree as ElementTree

from libvirt_lab import LabError, Libvirt, die_with_parent, enter_namespaces, wait_until
from product import Product

DOMAIN = """<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='{machine}'>hvm</type><bios useserial='yes'/></os>
  <devices>
    {devices}<memballoon model='virtio'/>
    <serial type='file'><source path='{log}'/></serial>
  </devices>
</domain>
"""
DRIVE = "<disk type='file' device='cdrom'>{source}<target dev='{dev}' bus='{bus}'/><readonly/></disk>"
ALIAS = "ua-pagefusion-additions"
BUILD = None


def make_image(path):
    """What is enough of an ISO 9660 image."""
    with open(path, "wb") as f:
        f.write(bytes(0x8001) + b"CD001" + bytes(0x8000))
    os.chmod(path, 0o644)


class AdditionsOnHost(unittest.TestCase):
    """Each test has VMs of its own."""

    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.mkdtemp(prefix="pagefusion-test-", dir="/tmp")
        os.chmod(cls.directory, 0o755)
        cls.iso = os.path.join(cls.directory, "pagefusion-guest-additions.iso")
        cls.other = os.path.join(cls.directory, "other.iso")
        cls.libvirt = Libvirt(cls.directory)
        cls.product = Product(BUILD)
        cls.running = []
        try:
            cls.libvirt.start()
            cls.product.start(cls.directory, shutil.copy(cls.product.shim_path, cls.directory),
                              "--additions-iso", cls.iso)
        except BaseException:
            cls.tearDownClass()
            raise

    @classmethod
    def tearDownClass(cls):
        for name in cls.running:
            try:
                cls.libvirt.virsh("destroy", name)
            except LabError:
                pass  # it does not run any more
        cls.product.stop()
        cls.libvirt.stop()
        shutil.rmtree(cls.directory, ignore_errors=True)

    def setUp(self):
        make_image(self.iso)
        make_image(self.other)

    def log(self, name):
        """What the firmware says."""
        return os.path.join(self.directory, name + ".log")

    def write(self, name, machine, devices):
        """A definition's file."""
        path = os.path.join(self.directory, name + ".xml")
        with open(path, "w", encoding="utf-8") as f:
            f.write(DOMAIN.format(name=name, machine=machine, devices=devices, log=self.log(name)))
        return path

    def define(self, name, machine="q35", devices=""):
        """A VM that is shut off; its definition."""
        self.libvirt.virsh("define", self.write(name, machine, devices))
        return self.definition(name)

    def start(self, name, *options):
        """It runs from now on, or stands still."""
        self.libvirt.virsh("start", name, *options)
        self.running.append(name)
        if not options:
            self.wait_for_firmware(name)

    def wait_for_firmware(self, name):
        """It resets the drives, and QEMU says nothing of that to libvirt, which takes an open one for open still."""
        def is_done():
            with open(self.log(name), encoding="utf-8", errors="replace") as f:
                return "No bootable device" in f.read()
        wait_until(is_done, 30, "the firmware of " + name)

    def definition(self, name):
        """The persistent one."""
        return self.libvirt.virsh("dumpxml", "--inactive", name)

    def additions(self, *words):
        """What pagefusionctl additions says when it is done."""
        done = self.product.ctl("additions", *words)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout

    def assert_refused(self, status, args, *words):
        """Nothing on standard output, one line of explanation with these words."""
        done = self.product.ctl("additions", *args)
        self.assertEqual(done.returncode, status, done.stderr)
        self.assertEqual(done.stdout, "")
        self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)

    def drives(self, name, *options):
        """{drive: image} of a VM's CD drives, None where it is empty."""
        root = ElementTree.fromstring(self.libvirt.virsh("dumpxml", name, *options))
        disks = [disk for disk in root.iter("disk") if disk.get("device") == "cdrom"]
        return {disk.find("target").get("dev"): disk.find("source").get("file") if disk.find("source") is not None
                else None for disk in disks}

    def qemu_has(self, name):
        """The images that QEMU itself says are in its drives."""
        answer = self.libvirt.virsh("qemu-monitor-command", name, '{"execute":"query-block"}')
        return [block["inserted"]["image"]["filename"] for block in json.loads(answer)["return"]
                if block.get("inserted")]

    def test_live(self):
        empty = DRIVE.format(source="", dev="sda", bus="sata")
        before = self.define("live", devices=empty)
        self.start("live")
        self.assertEqual(self.qemu_has("live"), [])
        said = self.additions("insert", "live")
        self.assertIn("in drive sda of VM live now", said)
        self.assertIn("sh /mnt/install.sh", said)
        self.assertEqual(self.qemu_has("live"), [self.iso])
        self.assertIn("already", self.additions("insert", "live"))
        self.assertEqual(self.definition("live"), before)
        # QEMU's user must not be able to write what guests execute as root.
        self.assertEqual(os.stat(self.iso).st_uid, 0)
        self.assertIn("ejected from drive sda", self.additions("eject", "live"))
        self.assertEqual(self.qemu_has("live"), [])
        self.assertIn("in no drive", self.additions("eject", "live"))
        self.assertEqual(self.definition("live"), before)

    def test_live_paused(self):
        self.define("paused", devices=DRIVE.format(source="", dev="sda", bus="sata"))
        self.start("paused", "--paused")
        self.additions("insert", "paused")
        self.assertEqual(self.qemu_has("paused"), [self.iso])
        self.additions("eject", "paused", "--force")
        self.assertEqual(self.qemu_has("paused"), [])

    def test_live_without_drive(self):
        before = self.define("bare")
        self.start("bare")
        self.assert_refused(4, ("insert", "bare"), "VM bare", "no CD drive", "shut it off and insert again")
        self.assertEqual(self.definition("bare"), before)

    def test_transient(self):
        self.libvirt.virsh("create", self.write("passing", "pc", DRIVE.format(source="", dev="hdc", bus="ide")))
        self.running.append("passing")
        self.wait_for_firmware("passing")
        self.assertIn("in drive hdc of VM passing now", self.additions("insert", "passing"))
        self.assertEqual(self.qemu_has("passing"), [self.iso])
        self.additions("eject", "passing")
        self.assertEqual(self.qemu_has("passing"), [])

    def test_occupied(self):
        other = DRIVE.format(source=f"<source file='{self.other}'/>", dev="sda", bus="sata")
        before = self.define("occupied", devices=other)
        self.assert_refused(4, ("insert", "occupied"), "VM occupied", "sda", self.other)
        self.start("occupied")
        self.assert_refused(4, ("insert", "occupied"), "VM occupied", "sda", self.other)
        self.assertIn("in no drive", self.additions("eject", "occupied"))
        self.assertEqual(self.qemu_has("occupied"), [self.other])
        self.assertEqual(self.definition("occupied"), before)

    def test_second_drive(self):
        drives = DRIVE.format(source=f"<source file='{self.other}'/>", dev="sda", bus="sata") + DRIVE.format(
            source="", dev="sdb", bus="sata")
        self.define("second", devices=drives)
        self.start("second")
        self.additions("insert", "second")
        self.assertEqual(self.drives("second"), {"sda": self.other, "sdb": self.iso})
        self.additions("eject", "second")
        self.assertEqual(self.drives("second"), {"sda": self.other, "sdb": None})

    def test_image(self):
        self.define("image")
        os.remove(self.iso)
        self.assert_refused(1, ("insert", "image"), "there is no " + self.iso, "pagefusion-guest-additions", "./run package")
        os.mkdir(self.iso)
        self.assert_refused(1, ("insert", "image"), self.iso, "no file")
        os.rmdir(self.iso)
        os.mkfifo(self.iso)
        self.assert_refused(1, ("insert", "image"), self.iso, "no file")
        os.remove(self.iso)
        with open(self.iso, "wb") as f:
            f.write(bytes(0x9000))
        self.assert_refused(1, ("insert", "image"), self.iso, "no ISO 9660 image")
        make_image(self.iso)
        os.chmod(self.iso, 0o664)
        self.assert_refused(1, ("insert", "image"), self.iso, "written by others")
        os.chmod(self.iso, 0o600)
        self.assert_refused(1, ("insert", "image"), self.iso, "chmod o+r")
        self.assertEqual(self.drives("image"), {})

    def test_off_with_drive(self):
        for machine, bus, dev in (("q35", "sata", "sdb"), ("pc", "ide", "hdc")):
            name = "off-" + bus
            before = self.define(name, machine, DRIVE.format(source="", dev=dev, bus=bus))
            self.assertIn(f"in drive {dev} of VM {name} when it is started next", self.additions("insert", name))
            self.assertEqual(self.drives(name), {dev: self.iso})
            self.start(name)
            self.assertEqual(self.qemu_has(name), [self.iso])
            self.assertIn(f"ejected from drive {dev}", self.additions("eject", name))
            self.assertEqual(self.qemu_has(name), [])
            self.assertEqual(self.definition(name), before)

    def test_off_without_drive(self):
        scsi = "<controller type='scsi' model='virtio-scsi'/>"
        full = "".join(f"<disk type='file'><source file='/nonexistent'/><target dev='hd{x}' bus='ide'/></disk>"
                       for x in "abcd")
        for name, machine, devices, dev in (("new-q35", "q35", "", "sda"), ("new-pc", "pc", "", "hda"),
                                            ("new-scsi", "pc", full + scsi, "sda"), ("new-usb", "pc", full, "sda")):
            before = self.define(name, machine, devices)
            self.assertIn(f"in the new drive {dev} of VM {name}", self.additions("insert", name))
            inserted = self.definition(name)
            self.assertIn(ALIAS, inserted)
            self.assertIn("already", self.additions("insert", name))
            self.assertEqual(self.definition(name), inserted)
            self.assertIn("gone too", self.additions("eject", name))
            self.assertEqual(self.definition(name), before)

    def test_added_drive_runs(self):
        for machine in ("q35", "pc"):
            name = "added-" + machine
            before = self.define(name, machine)
            self.additions("insert", name)
            self.start(name)
            self.assertEqual(self.qemu_has(name), [self.iso])
            self.assertIn("gone when the VM is started next", self.additions("eject", name))
            self.assertEqual(self.qemu_has(name), [])
            self.assertEqual(self.definition(name), before)

    def test_image_goes(self):
        """A VM starts without an image that is not there any more."""
        self.define("goes")
        self.additions("insert", "goes")
        os.remove(self.iso)
        self.start("goes")
        self.assertEqual(self.qemu_has("goes"), [])
        self.additions("eject", "goes")
        self.assertEqual(self.drives("goes", "--inactive"), {})

    def test_saved(self):
        self.define("saved", devices=DRIVE.format(source="", dev="sda", bus="sata"))
        self.start("saved")
        self.libvirt.virsh("managedsave", "saved")
        before = self.definition("saved")
        self.assert_refused(4, ("insert", "saved"), "saved state", "managedsave-remove saved")
        self.assert_refused(4, ("eject", "saved"), "saved state", "managedsave-remove saved")
        self.assertEqual(self.definition("saved"), before)

    def test_hung_qemu(self):
        """A QEMU that does not answer holds up nothing but its own VM."""
        self.define("hung", devices=DRIVE.format(source="", dev="sda", bus="sata"))
        self.define("other")
        self.start("hung")
        with open("/run/libvirt/qemu/hung.pid", encoding="ascii") as f:
            qemu = int(f.read())
        os.kill(qemu, signal.SIGSTOP)
        both = [subprocess.Popen([self.product.ctl_path, "additions", "insert", "hung"], stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, text=True) for _ in range(2)]
        try:
            # Whichever comes first hangs, the other is told so.
            wait_until(lambda: any(ctl.poll() is not None for ctl in both), 20, "one of two to be refused")
            refused, waiting = sorted(both, key=lambda ctl: ctl.poll() is None)
            self.assertIn("earlier change", refused.communicate()[1])
            self.assert_refused(1, ("eject", "hung"), "earlier change", "VM hung")
            began = time.monotonic()
            self.additions("insert", "other")
            self.assertLess(time.monotonic() - began, 10)
            self.assertIsNone(waiting.poll())
        finally:
            os.kill(qemu, signal.SIGCONT)
            said = [ctl.communicate(timeout=60) for ctl in both if not ctl.stdout.closed]
        self.assertEqual((refused.returncode, waiting.returncode), (1, 0))
        self.assertIn("in drive sda of VM hung now", said[-1][0])

    def test_words(self):
        self.assert_refused(3, ("insert", "nobody"), "nobody")
        self.assert_refused(3, ("eject", "nobody"), "nobody")
        self.assert_refused(2, ("mount", "nobody"), "'insert' or 'eject'")
        self.assert_refused(2, ("insert",), "a VM is missing")


def main():
    """The command."""
    global BUILD
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    parser.add_argument("--with-parent", action="store_true")
    parser.add_argument("tests", nargs="*")
    options = parser.parse_args()
    BUILD = options.build
    if options.with_parent:
        die_with_parent()
    enter_namespaces()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    unittest.main(argv=sys.argv[:1] + options.tests)


if __name__ == "__main__":
    main()
