# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the real service and client say to mistakes, with a real libvirt: one line, a status, and nothing changed."""
import argparse
import os
import shutil
import signal
import sys
import tempfile
import unittest

from libvirt_lab import LabError, Libvirt, die_with_parent, enter_namespaces, stop, wait_until
from product import Product

DOMAIN = """<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  {backing}
  <devices><memballoon model='virtio'/></devices>
</domain>
"""
BUILD = None


class BadInput(unittest.TestCase):
    """In the order of their names: the last ones take things away."""

    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.mkdtemp(prefix="pagefusion-test-", dir="/tmp")
        os.chmod(cls.directory, 0o755)
        cls.libvirt = Libvirt(cls.directory)
        cls.product = Product(BUILD)
        try:
            cls.libvirt.start()
            cls.alone = cls.product.ctl("list", "vms")
            # The machine may have the guest additions: not for us.
            cls.product.start(cls.directory, shutil.copy(cls.product.shim_path, cls.directory), "--additions-iso",
                              os.path.join(cls.directory, "pagefusion-guest-additions.iso"))
            cls.define("plain")
            cls.define("hugepages", "<memoryBacking><hugepages/></memoryBacking>")
        except BaseException:
            cls.tearDownClass()
            raise

    @classmethod
    def tearDownClass(cls):
        try:
            cls.libvirt.virsh("destroy", "plain")
        except LabError:
            pass  # it does not run any more
        cls.product.stop()
        cls.libvirt.stop()
        shutil.rmtree(cls.directory, ignore_errors=True)

    @classmethod
    def define(cls, name, backing=""):
        """A domain without an operating system."""
        path = os.path.join(cls.directory, name + ".xml")
        with open(path, "w", encoding="utf-8") as f:
            f.write(DOMAIN.format(name=name, backing=backing))
        cls.libvirt.virsh("define", path)
        wait_until(lambda: cls.product.ctl("showvminfo", name).returncode == 0, 10, "pagefusiond to see " + name)

    def assert_refusal(self, done, *words):
        """Nothing on standard output, one line of explanation with these words, status not zero."""
        self.assertNotEqual(done.returncode, 0)
        self.assertEqual(done.stdout, "")
        self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
        for word in words:
            self.assertIn(word.lower(), done.stderr.lower())

    def definition(self, name):
        """The persistent one."""
        return self.libvirt.virsh("dumpxml", "--inactive", name)

    def test_1_no_service(self):
        self.assert_refusal(self.alone, "pagefusiond")

    def test_1_no_such_vm(self):
        self.assert_refusal(self.product.ctl("showvminfo", "nobody"), "nobody")
        self.assert_refusal(self.product.ctl("modifyvm", "nobody", "--pagefusion", "on"), "nobody")
        self.assert_refusal(self.product.ctl("metrics", "query", "nobody"), "nobody")

    def test_1_arguments(self):
        before = self.definition("plain")
        self.assert_refusal(self.product.ctl("metrics", "query", "host", "RAM/VMM/Sharde"), "RAM/VMM/Shared")
        self.assert_refusal(self.product.ctl("modifyvm", "plain", "--pagefusion", "maybe"), "maybe")
        self.assert_refusal(self.product.ctl("modifyvm", "plain"), "--pagefusion")
        self.assert_refusal(self.product.ctl("modifyvm", "plain", "--thp", "some"), "some", "balanced")
        self.assert_refusal(self.product.ctl("modifyvm", "plain", "--thp", "all"), "page fusion is off",
                            "--pagefusion on")
        self.assert_refusal(self.product.ctl("modifyvm", "plain", "--group", "a/b"), "a/b", "1 to 63 letters")
        self.assert_refusal(self.product.ctl("modifyvm", "plain", "--group", ""), "--group", "1 to 63 letters")
        self.assert_refusal(self.product.ctl("modifyvm", "plain", "--group", "tenant-1"), "page fusion is off",
                            "--pagefusion on --group NAME")
        self.assert_refusal(self.product.ctl("dance"), "dance")
        self.assertEqual(self.definition("plain"), before)

    def test_1_additions(self):
        before = self.definition("plain")
        self.assert_refusal(self.product.ctl("additions"), "'insert' or 'eject'", "additions insert VM")
        self.assert_refusal(self.product.ctl("additions", "install", "plain"), "'insert' or 'eject'")
        self.assert_refusal(self.product.ctl("additions", "insert"), "a VM is missing")
        self.assert_refusal(self.product.ctl("additions", "insert", "nobody"), "nobody")
        self.assert_refusal(self.product.ctl("additions", "insert", "plain", "--force"), "--force")
        missing = self.product.ctl("additions", "insert", "plain")
        self.assert_refusal(missing, "there is no ", "pagefusion-guest-additions.iso", "./run package")
        self.assertEqual(self.definition("plain"), before)

    def test_1_refused_definition(self):
        before = self.definition("hugepages")
        self.assert_refusal(self.product.ctl("modifyvm", "hugepages", "--pagefusion", "on"), "huge")
        self.assertEqual(self.definition("hugepages"), before)

    def test_2_running(self):
        self.libvirt.virsh("start", "plain")
        before = self.definition("plain")
        self.assert_refusal(self.product.ctl("modifyvm", "plain", "--pagefusion", "on"), "plain", "shut")
        self.assert_refusal(self.product.ctl("modifyvm", "plain", "--group", "tenant-1"), "plain", "shut")
        self.assertEqual(self.definition("plain"), before)
        self.libvirt.virsh("destroy", "plain")

    def test_3_on(self):
        before = self.definition("plain")
        wait_until(lambda: self.product.ctl("modifyvm", "plain", "--pagefusion", "on").returncode == 0, 10,
                   "page fusion to be turned on")
        changed = self.definition("plain")
        self.assertNotIn("LD_PRELOAD", before)
        self.assertIn("LD_PRELOAD", changed)
        self.assertIn("org.pagefusion.agent.0", changed)

    def info(self, name):
        """What showvminfo says to a person."""
        return self.product.ctl("showvminfo", name).stdout

    def redefine(self, text):
        """As an administrator does with an editor."""
        path = os.path.join(self.directory, "edited.xml")
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        self.libvirt.virsh("define", path)

    def test_3_policy(self):
        self.assertRegex(self.info("plain"), r"Huge pages: +all \(group\)\n")
        self.assertEqual(self.product.ctl("modifyvm", "plain", "--thp", "preserve").returncode, 0)
        self.assertRegex(self.info("plain"), r"Huge pages: +preserve\n")
        text = self.definition("plain")
        self.assertIn("preserve", text)
        self.redefine(text.replace("preserve", "some"))
        self.assert_refusal(self.product.ctl("modifyvm", "plain", "--pagefusion", "on"), "<pf:pagefusion thp>",
                            "preserve, balanced, all or default")
        done = self.product.ctl("modifyvm", "plain", "--pagefusion", "on", "--thp", "default")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertRegex(self.info("plain"), r"Huge pages: +all \(group\)\n")
        self.assertNotIn("thp", self.definition("plain"))

    def test_3_trust_group(self):
        self.assertRegex(self.info("plain"), r"Group: +default\n")
        self.assertEqual(self.product.ctl("modifyvm", "plain", "--group", "tenant-1").returncode, 0)
        self.assertRegex(self.info("plain"), r"Group: +tenant-1\n")
        self.assertIn(', group "tenant-1", ', self.product.ctl("list", "vms", "--long").stdout)
        text = self.definition("plain")
        self.assertRegex(text, r"<pf:pagefusion [^>]*group=.tenant-1.")
        self.redefine(text.replace("tenant-1", "tenant 1"))
        self.assert_refusal(self.product.ctl("modifyvm", "plain", "--pagefusion", "on"), "<pf:pagefusion group>",
                            "1 to 63 letters")
        done = self.product.ctl("modifyvm", "plain", "--pagefusion", "on", "--group", "default")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertRegex(self.info("plain"), r"Group: +default\n")
        self.assertNotIn("group=", self.definition("plain"))

    def test_4_no_libvirt(self):
        stop(self.libvirt.processes[-1])
        wait_until(lambda: self.product.ctl("list", "vms").returncode != 0, 20, "pagefusiond to lose libvirt")
        self.assert_refusal(self.product.ctl("modifyvm", "plain", "--pagefusion", "off"), "libvirt")


def main():
    """The command."""
    global BUILD
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    parser.add_argument("--with-parent", action="store_true")
    options = parser.parse_args()
    BUILD = options.build
    if options.with_parent:
        die_with_parent()
    enter_namespaces()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    unittest.main(argv=sys.argv[:1])


if __name__ == "__main__":
    main()
