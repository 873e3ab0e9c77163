# SPDX-License-Identifier: LGPL-2.1-or-later
"""The .deb and the .rpm, by dpkg and rpm: installed, upgraded, removed, in systems that run and in some that do not.

What systemd and udev are told is written down by stand-ins. Dependencies are not there: lintian and dpkg-shlibdeps have
looked at them.
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

from roots import PORT, Root, dpkg, find_package, newer_deb, rpm

OPTIONS = None
AGENT = "/usr/sbin/pagefusion-agent"
CONFIG = "/etc/pagefusion/agent.conf"
UNIT = "/usr/lib/systemd/system/pagefusion-agent.service"
RULE = "/usr/lib/udev/rules.d/90-pagefusion-agent.rules"
ABOUT_UDEV = ["udevadm control --reload", "udevadm trigger --action=add --subsystem-match=virtio-ports"]


class Case(unittest.TestCase):
    """A root for each test."""

    def setUp(self):
        self.scratch = tempfile.mkdtemp(prefix="pf-deb-rpm-")
        self.addCleanup(shutil.rmtree, self.scratch)
        self.root = Root(os.path.join(self.scratch, "root"), "systemd")
        self.root.record("deb-systemd-invoke")
        os.makedirs(self.root.path("/usr/lib"))

    def run_systemd(self, with_port):
        """As far as packages can see."""
        os.makedirs(self.root.path("/run/systemd/system"))
        if with_port:
            self.root.write(PORT, "")

    def ok(self, done):
        """Whether a command succeeded."""
        self.assertEqual(done.returncode, 0, done.stdout)
        return done.stdout

    def ours(self):
        """What is there of the package, or of its name. The databases are the package managers' own."""
        return sorted(path for path in self.root.files()
                      if "pagefusion" in path and not path.startswith(("/var/lib/", "/dev/")))


class Deb(Case):
    """By dpkg."""

    def setUp(self):
        super().setUp()
        self.deb = find_package(OPTIONS.dist, "pagefusion-guest_", ".deb")
        self.newer = newer_deb(self.deb, "99.0", os.path.join(self.scratch, "newer.deb"))
        self.ok(dpkg(self.root, "--configure", "-a"))
        self.before = self.root.files()

    def status(self):
        """Of the package, as dpkg has it: '' when it has never heard of it."""
        return subprocess.run(["dpkg-query", "--admindir", self.root.path("/var/lib/dpkg"), "-W", "-f",
                               "${db:Status-Status}", "pagefusion-guest"], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True, check=False).stdout

    def test_in_chroot(self):
        """Nothing is started; after purge nothing is left."""
        self.ok(dpkg(self.root, "-i", self.deb))
        self.assertEqual(self.status(), "installed")
        for path in (AGENT, CONFIG, UNIT, RULE):
            self.assertIn(path, self.ours())
        self.ok(dpkg(self.root, "-i", self.newer))
        self.assertIn("# New in 99.0", self.root.read(CONFIG))
        self.ok(dpkg(self.root, "-r", "pagefusion-guest"))
        self.assertEqual(self.status(), "config-files")
        self.assertEqual(self.ours(), ["/etc/pagefusion", CONFIG])
        self.ok(dpkg(self.root, "-P", "pagefusion-guest"))
        self.assertEqual(self.ours(), [])
        left = {path for path in set(self.root.files()) - set(self.before) if not path.startswith("/var/lib/dpkg/")}
        self.assertEqual(left, set())
        self.assertEqual(self.root.calls(), [])

    def test_changed_configuration(self):
        """An administrator's stays through an upgrade that has another, and through removal."""
        self.ok(dpkg(self.root, "-i", self.deb))
        self.root.write(CONFIG, "[classes]\nkernel = on\n")
        self.ok(dpkg(self.root, "--force-confold", "-i", self.newer))
        self.assertEqual(self.root.read(CONFIG), "[classes]\nkernel = on\n")
        self.ok(dpkg(self.root, "-r", "pagefusion-guest"))
        self.assertEqual(self.root.read(CONFIG), "[classes]\nkernel = on\n")
        self.ok(dpkg(self.root, "-P", "pagefusion-guest"))
        self.assertEqual(self.ours(), [])

    def test_where_systemd_runs(self):
        """Started with the port, started anew by an upgrade, stopped before its program goes."""
        self.run_systemd(with_port=True)
        told = ["systemctl --system daemon-reload", *ABOUT_UDEV, "deb-systemd-invoke restart pagefusion-agent.service"]
        self.ok(dpkg(self.root, "-i", self.deb))
        self.assertEqual(self.root.calls(), told)
        self.ok(dpkg(self.root, "-i", self.newer))
        self.assertEqual(self.root.calls(), told)
        self.ok(dpkg(self.root, "-P", "pagefusion-guest"))
        self.assertEqual(self.root.calls(), ["deb-systemd-invoke stop pagefusion-agent.service",
                                             "systemctl --system daemon-reload", "udevadm control --reload"])

    def test_where_systemd_runs_without_port(self):
        """udev will start it, when the host has turned page fusion on."""
        self.run_systemd(with_port=False)
        self.ok(dpkg(self.root, "-i", self.deb))
        self.assertEqual(self.root.calls(), ["systemctl --system daemon-reload", *ABOUT_UDEV])

    def test_tools_that_fail(self):
        """An installation does not fail because systemd or udev cannot be asked."""
        self.run_systemd(with_port=True)
        for name in ("systemctl", "udevadm", "deb-systemd-invoke"):
            self.root.write("/usr/bin/" + name, "#!/bin/sh\nexit 1\n", 0o755)
        self.ok(dpkg(self.root, "-i", self.deb))
        self.ok(dpkg(self.root, "-P", "pagefusion-guest"))
        self.assertEqual(self.ours(), [])

    def test_after_install_sh(self):
        """The unit that it made would go before the package's."""
        self.root.write("/opt/pagefusion-guest/uninstall", "")
        done = dpkg(self.root, "-i", self.deb)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("\n  /opt/pagefusion-guest/uninstall\n", done.stdout)
        self.assertNotIn(AGENT, self.ours())


class Rpm(Case):
    """By rpm."""

    def setUp(self):
        super().setUp()
        self.rpm = find_package(OPTIONS.dist, "pagefusion-guest-", ".rpm")
        self.before = self.root.files()

    def test_in_chroot(self):
        self.ok(rpm(self.root, "-i", self.rpm))
        self.assertEqual(self.ok(self.root.run(AGENT, "--version"))[:17], "pagefusion-agent ")
        self.assertEqual(self.ok(rpm(self.root, "-V", "pagefusion-guest")), "")
        for path in (AGENT, CONFIG, UNIT, RULE):
            self.assertIn(path, self.ours())
        self.ok(rpm(self.root, "-e", "pagefusion-guest"))
        self.assertEqual(self.ours(), [])
        self.assertEqual(self.root.calls(), [])

    def test_changed_configuration(self):
        """It is kept under another name, as rpm does."""
        self.ok(rpm(self.root, "-i", self.rpm))
        self.root.write(CONFIG, "[classes]\nkernel = on\n")
        self.ok(rpm(self.root, "-e", "pagefusion-guest"))
        self.assertEqual(self.ours(), ["/etc/pagefusion", CONFIG + ".rpmsave"])

    def test_where_systemd_runs(self):
        self.run_systemd(with_port=True)
        told = ["systemctl --system daemon-reload", *ABOUT_UDEV, "systemctl restart pagefusion-agent.service"]
        self.ok(rpm(self.root, "-i", self.rpm))
        self.assertEqual(self.root.calls(), told)
        # As an upgrade does it: the new one comes, then the old one's scripts run, which must not stop it.
        self.ok(rpm(self.root, "-U", "--replacepkgs", "--force", self.rpm))
        self.assertEqual(self.root.calls(), told)
        self.ok(rpm(self.root, "-e", "pagefusion-guest"))
        self.assertEqual(self.root.calls(), ["systemctl stop pagefusion-agent.service",
                                             "systemctl --system daemon-reload", "udevadm control --reload"])

    def test_after_install_sh(self):
        self.root.write("/opt/pagefusion-guest/uninstall", "")
        done = rpm(self.root, "-i", self.rpm)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("\n  /opt/pagefusion-guest/uninstall\n", done.stdout)
        self.assertNotIn(AGENT, self.ours())


def main():
    """The command."""
    global OPTIONS
    parser = argparse.ArgumentParser()
    parser.add_argument("--dist", required=True)
    OPTIONS, rest = parser.parse_known_args()
    sys.exit(0 if unittest.main(argv=sys.argv[:1] + rest, exit=False).result.wasSuccessful() else 1)


if __name__ == "__main__":
    main()
