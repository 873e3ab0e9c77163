# SPDX-License-Identifier: LGPL-2.1-or-later
"""install.sh in systems that do not run, of every kind of init: in a chroot, and from outside with --root."""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

from roots import KINDS, Root, dpkg, find_package, make_newer, newer_deb, rpm, unpack_additions

OPTIONS = None
PREFIX = "/opt/pagefusion-guest"
AGENT = PREFIX + "/sbin/pagefusion-agent"
CONFIG = "/etc/pagefusion/agent.conf"
# What makes the agent start there.
STARTERS = {
    "systemd": ["/etc/systemd/system/pagefusion-agent.service", "/etc/udev/rules.d/90-pagefusion-agent.rules"],
    "openrc": ["/etc/init.d/pagefusion-agent", "/etc/runlevels/default/pagefusion-agent"],
    "sysvinit": ["/etc/init.d/pagefusion-agent", "/etc/rc0.d/K80pagefusion-agent", "/etc/rc3.d/S20pagefusion-agent"],
    "inittab": [],
    "none": [],
}


class Case(unittest.TestCase):
    """With the additions unpacked, and roots to install them in."""

    def setUp(self):
        self.scratch = tempfile.mkdtemp(prefix="pf-install-")
        self.addCleanup(shutil.rmtree, self.scratch)
        self.additions = unpack_additions(OPTIONS.dist, os.path.join(self.scratch, "additions"))

    def root(self, kind):
        """A system without the additions."""
        return Root(os.path.join(self.scratch, "root-" + kind), kind)

    def in_chroot(self, root, *arguments):
        """install.sh as an image builder runs it: the additions are copied there."""
        place = root.path("/media/additions")
        shutil.copytree(self.additions, place)
        try:
            return root.run("sh", "/media/additions/install.sh", *arguments)
        finally:
            shutil.rmtree(place)

    def from_outside(self, root, *arguments, **environment):
        """install.sh --root, in the shell of this machine."""
        return subprocess.run(["sh", os.path.join(self.additions, "install.sh"), "--root", root.directory, *arguments],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                              env={**os.environ, **environment})

    def succeeds(self, done):
        """Whether a command did."""
        self.assertEqual(done.returncode, 0, done.stdout)
        return done.stdout

    def refused(self, root, done, reason):
        """That install.sh said so, changed nothing and left nothing."""
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertRegex(done.stdout, reason)
        self.assertEqual(root.files(), self.before)


class Life(Case):
    """Installed, again, and removed."""

    def live_through(self, kind, run):
        """One life: afterwards everything is as it was before."""
        root = self.root(kind)
        before = root.files()
        said = self.succeeds(run(root))
        self.assertIn("Installing", said)
        installed = root.files()
        for path in [AGENT, CONFIG, PREFIX + "/uninstall", PREFIX + "/manifest", *STARTERS[kind]]:
            self.assertIn(path, installed)
        self.check_inittab(kind, root)
        if kind == "none":
            self.assertIn(AGENT + " --wait", said)
        self.assertEqual(self.succeeds(root.run(AGENT, "--version"))[:17], "pagefusion-agent ")
        self.assertIn("Upgrading", self.succeeds(run(root)))
        self.assertEqual(root.files(), installed)
        self.succeeds(run(root, "--uninstall"))
        self.assertEqual(root.files(), before)
        self.assertEqual(root.calls(), [])  # nothing was started, stopped or told

    def check_inittab(self, kind, root):
        """It has one line of ours, on its own, and all that it had."""
        if kind != "inittab":
            return
        lines = root.read("/etc/inittab").split("\n")
        self.assertEqual(lines[:3], ["::sysinit:/bin/true", "# A comment.", "tty1::askfirst:/bin/sh"])
        self.assertEqual([line for line in lines if "respawn" in line], [f"::respawn:{AGENT}-respawn init"])

    def test_in_chroot(self):
        for kind in KINDS:
            with self.subTest(kind=kind):
                self.live_through(kind, self.in_chroot)
                shutil.rmtree(self.scratch + "/root-" + kind)

    def test_from_outside(self):
        for kind in KINDS:
            with self.subTest(kind=kind):
                self.live_through(kind, self.from_outside)

    def test_in_chroot_with_proc(self):
        """Process 1 is this machine's, whatever it is."""
        root = self.root("systemd")
        os.makedirs(root.path("/run/systemd/system"))
        subprocess.run(["mount", "-t", "proc", "proc", root.path("/proc")], check=True)
        try:
            self.succeeds(self.in_chroot(root))
            self.assertEqual(root.calls(), [])
        finally:
            subprocess.run(["umount", root.path("/proc")], check=True)

    def test_tools_of_sysvinit(self):
        """Debian's knows the order of the scripts; it is told of both."""
        root = self.root("sysvinit")
        root.record("update-rc.d")
        before = root.files()
        self.succeeds(self.from_outside(root))
        self.assertEqual(root.calls(), ["update-rc.d pagefusion-agent defaults"])
        self.assertNotIn("/etc/rc3.d/S20pagefusion-agent", root.files())
        self.succeeds(self.from_outside(root, "--uninstall"))
        self.assertEqual(root.calls(), ["update-rc.d -f pagefusion-agent remove"])
        self.assertEqual(root.files(), before)

    def test_inittab_without_an_end(self):
        """A last line that is not ended stays a line of its own."""
        root = self.root("inittab")
        root.write("/etc/inittab", root.read("/etc/inittab")[:-1])
        self.succeeds(self.from_outside(root))
        self.check_inittab("inittab", root)
        self.succeeds(self.from_outside(root))
        self.check_inittab("inittab", root)

    def test_uninstall_by_its_own(self):
        root = self.root("systemd")
        before = root.files()
        self.succeeds(self.in_chroot(root))
        self.succeeds(root.run(PREFIX + "/uninstall"))
        self.assertEqual(root.files(), before)


class Upgrade(Case):
    """From one version to the next."""

    def test_configuration(self):
        """The administrator's stays, also after removal; one that nobody changed follows."""
        for changed in (False, True):
            with self.subTest(changed=changed):
                root = self.root(("systemd", "openrc")[changed])
                before = root.files()
                self.succeeds(self.from_outside(root))
                if changed:
                    root.write(CONFIG, root.read(CONFIG) + "[classes]\nkernel = on\n")
                mine = root.read(CONFIG)
                make_newer(self.additions, "99.0")
                said = self.succeeds(self.from_outside(root))
                self.assertIn("to 99.0", said)
                self.assertEqual("Kept: " + CONFIG in said, changed)
                self.assertEqual(root.read(CONFIG) == mine, changed)
                self.assertIn("# New in 99.0", root.read(PREFIX + "/doc/agent.conf"))
                said = self.succeeds(self.from_outside(root, "--uninstall"))
                self.assertEqual("Kept" in said, changed)
                left = set(root.files()) - set(before)
                self.assertEqual(left, {"/etc/pagefusion", CONFIG} if changed else set())

    def test_another_init(self):
        """What started the version before, and no longer does, is removed."""
        root = self.root("inittab")
        before = root.files()
        self.succeeds(self.from_outside(root))
        os.unlink(root.path("/sbin/init"))
        root.write("/lib/systemd/systemd", "", 0o755)
        os.symlink("/lib/systemd/systemd", root.path("/sbin/init"))
        self.assertIn("(systemd)", self.succeeds(self.from_outside(root)))
        self.assertNotIn("pagefusion", root.read("/etc/inittab"))
        self.succeeds(self.from_outside(root, "--uninstall"))
        self.assertEqual(set(root.files()) - set(before), {"/lib", "/lib/systemd", "/lib/systemd/systemd"})

    def test_in_use(self):
        """A program that runs is replaced, not written to."""
        root = self.root("none")
        self.succeeds(self.from_outside(root))
        with open(root.path(AGENT), "rb") as running:
            start = running.read(64)
            self.succeeds(self.from_outside(root))
            self.assertEqual(os.fstat(running.fileno()).st_nlink, 0)
            running.seek(0)
            self.assertEqual(running.read(64), start)


class Refusals(Case):
    """What install.sh does not do, and says what to do."""

    def setUp(self):
        super().setUp()
        self.target = self.root("systemd")
        self.before = self.target.files()

    def fake(self, name, script):
        """PATH with a command that answers as another machine's."""
        directory = os.path.join(self.scratch, "fake")
        os.makedirs(directory, exist_ok=True)
        with open(os.path.join(directory, name), "w", encoding="utf-8") as f:
            f.write("#!/bin/sh\n" + script)
        os.chmod(os.path.join(directory, name), 0o755)
        return directory + ":" + os.environ["PATH"]

    def test_wrong_options(self):
        for arguments in (["--frobnicate"], ["--root"], ["--root", "/nowhere"], ["--root", self.scratch], ["x"]):
            done = self.from_outside(self.target, *arguments)
            self.refused(self.target, done, r"^install\.sh: ")

    def test_help(self):
        self.assertIn("--uninstall", self.succeeds(self.from_outside(self.target, "--help")))
        self.assertEqual(self.target.files(), self.before)

    def test_not_root(self):
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-s", "--", "--root"]
        done = subprocess.run([*command, self.target.directory], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, check=False, cwd="/", input=self.script())
        self.refused(self.target, done, "needs root")

    def script(self):
        """install.sh's text: the directory that it is in is closed to others."""
        with open(os.path.join(self.additions, "install.sh"), encoding="utf-8") as f:
            return f.read()

    def test_another_machine(self):
        path = self.fake("uname", "[ $1 = -m ] && echo aarch64 || echo 6.1.0")
        self.refused(self.target, self.from_outside(self.target, PATH=path), "aarch64.*x86_64")

    def test_old_kernel(self):
        """The one that runs here is not the one that an image will have."""
        for release, old in (("4.18.0-553.el8", True), ("3.10.0", True), ("4.19.0-1", False), ("10.0-rc1", False)):
            path = self.fake("uname", f"[ $1 = -m ] && echo x86_64 || echo {release}")
            said = self.succeeds(self.from_outside(self.target, PATH=path))
            self.assertEqual(f"Note: the agent needs Linux 4.19 or later; here runs {release}" in said, old, said)

    def test_no_devices(self):
        """Else what nobody wants to read would become a file."""
        os.unlink(self.target.path("/dev/null"))
        self.before = self.target.files()
        self.refused(self.target, self.in_chroot(self.target), "mount /dev first")

    def test_incomplete(self):
        os.unlink(os.path.join(self.additions, "files/sbin/pagefusion-agent"))
        self.refused(self.target, self.from_outside(self.target), "is not complete")

    def test_nothing_to_remove(self):
        self.refused(self.target, self.from_outside(self.target, "--uninstall"), "nothing to remove")

    def test_deb_is_installed(self):
        deb = newer_deb(find_package(OPTIONS.dist, "pagefusion-guest_", ".deb"), "98.0",
                        os.path.join(self.scratch, "x.deb"))
        dpkg(self.target, "-i", deb)
        self.before = self.target.files()
        self.refused(self.target, self.from_outside(self.target), "apt-get purge pagefusion-guest")

    def test_rpm_is_installed(self):
        rpm(self.target, "-i", find_package(OPTIONS.dist, "pagefusion-guest-", ".rpm"))
        self.before = self.target.files()
        self.refused(self.target, self.from_outside(self.target), "rpm -e pagefusion-guest")

    def test_read_only(self):
        subprocess.run(["mount", "--bind", self.target.directory, self.target.directory], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", self.target.directory], check=True)
        try:
            self.refused(self.target, self.from_outside(self.target), "is read-only")
        finally:
            subprocess.run(["umount", self.target.directory], check=True)

    def test_link_that_leads_out(self):
        outside = os.path.join(self.scratch, "outside")
        os.mkdir(outside)
        os.symlink(outside, self.target.path("/opt"))
        self.before = self.target.files()
        self.refused(self.target, self.from_outside(self.target), "leads out of")
        self.assertEqual(os.listdir(outside), [])


class FullDisk(Case):
    """Nothing is half done."""

    def on_small_disk(self, kind, mib):
        """A system with so much room for everything."""
        directory = os.path.join(self.scratch, "root-" + kind)
        os.mkdir(directory)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "small", directory], check=True)
        self.addCleanup(subprocess.run, ["umount", directory], check=True)
        return Root(directory, kind)

    def fill(self, root, leave_kib):
        """Takes all the room but so much."""
        status = os.statvfs(root.directory)
        with open(root.path("/filler"), "wb") as f:
            f.write(b"\1" * (status.f_bavail * status.f_bsize - (leave_kib << 10)))

    def test_first_time(self):
        """Whatever it is that does not fit: the program, or what comes after it."""
        size_kib = os.stat(os.path.join(self.additions, "files/sbin/pagefusion-agent")).st_size >> 10
        root = self.on_small_disk("inittab", 16)
        for leave_kib in (8, size_kib // 2, size_kib + 8, size_kib + 60, size_kib + 200):
            with self.subTest(leave_kib=leave_kib):
                self.fill(root, leave_kib)
                self.before = root.files()
                self.refused(root, self.from_outside(root), "Nothing was changed")
                os.unlink(root.path("/filler"))
        self.succeeds(self.from_outside(root))

    def test_upgrade(self):
        root = self.on_small_disk("inittab", 24)
        self.succeeds(self.from_outside(root))
        make_newer(self.additions, "99.0")
        self.fill(root, 1024)
        self.before = root.files()
        self.refused(root, self.from_outside(root), "Nothing was changed")
        self.succeeds(root.run(AGENT, "--version"))


def main():
    """The command."""
    global OPTIONS
    parser = argparse.ArgumentParser()
    parser.add_argument("--dist", required=True)
    OPTIONS, rest = parser.parse_known_args()
    sys.exit(0 if unittest.main(argv=sys.argv[:1] + rest, exit=False).result.wasSuccessful() else 1)


if __name__ == "__main__":
    main()
