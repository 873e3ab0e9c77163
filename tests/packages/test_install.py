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


def become_systemd(root):
    """Gives it another init."""
    os.unlink(root.path("/sbin/init"))
    root.write("/lib/systemd/systemd", "", 0o755)
    os.symlink("/lib/systemd/systemd", root.path("/sbin/init"))


class Case(unittest.TestCase):
    """With the additions unpacked, and roots to install them in."""

    def setUp(self):
        self.scratch = tempfile.mkdtemp(prefix="pf-install-")
        self.addCleanup(shutil.rmtree, self.scratch)
        self.additions = unpack_additions(OPTIONS.dist, os.path.join(self.scratch, "additions"))

    def root(self, kind, name="root"):
        """A system without the additions."""
        return Root(os.path.join(self.scratch, name + "-" + kind), kind)

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

    def fake(self, name, script):
        """PATH with a command that does this instead."""
        directory = os.path.join(self.scratch, "fake")
        os.makedirs(directory, exist_ok=True)
        with open(os.path.join(directory, name), "w", encoding="utf-8") as f:
            f.write("#!/bin/sh\n" + script)
        os.chmod(os.path.join(directory, name), 0o755)
        return directory + ":" + os.environ["PATH"]

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
        self.assertEqual([line for line in lines if "respawn" in line], [f"::respawn:{AGENT}-respawn"])

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


class Inittab(Case):
    """Without it nothing starts: no line of others is ever lost."""

    OTHERS = ["::sysinit:/bin/true", "# A comment.", "tty1::askfirst:/bin/sh"]

    def others(self, root):
        """Its lines but ours."""
        return [line for line in root.read("/etc/inittab").splitlines() if "pagefusion" not in line]

    def test_failing_tools(self):
        """Whichever of them fails or is killed with it, install.sh says so, and changes nothing."""
        for tool in ("cat", "cp", "sed", "tail", "wc", "mv"):
            for end in ("exit 4", "kill -9 $$", "printf ::sysinit; kill -9 $$"):
                with self.subTest(tool=tool, end=end):
                    root = self.root("inittab")
                    self.fake(tool, f"exec {shutil.which(tool)} \"$@\"\n")
                    self.succeeds(self.from_outside(root))
                    installed = root.read("/etc/inittab")
                    path = self.fake(tool, f'case "$*" in *inittab* | -c) {end} ;; esac\n'
                                     f'exec {shutil.which(tool)} "$@"\n')
                    for arguments in ((), ("--uninstall",)):
                        done = self.from_outside(root, *arguments, PATH=path)
                        if done.returncode == 0:
                            self.assertIn(tool, ("sed", "tail"))  # not used for it
                            self.assertEqual(self.others(root), self.OTHERS, done.stdout)
                        else:
                            self.assertEqual(root.read("/etc/inittab"), installed)
                    shutil.rmtree(root.directory)

    def test_failing_sed(self):
        """It reads what was installed: without knowing that nothing is removed."""
        root = self.root("inittab")
        path = self.fake("sed", "kill -9 $$\n")
        self.succeeds(self.from_outside(root, PATH=path))
        self.assertEqual(self.others(root), self.OTHERS)
        self.before = root.files()
        for arguments in ((), ("--uninstall",)):
            self.refused(root, self.from_outside(root, *arguments, PATH=path), "could not read .*manifest")

    def test_marks(self):
        """When it is not clear what is ours, that is said; what stands between the marks is not ours for that."""
        begin, line, end = "# pagefusion-guest: begin", f"::respawn:{AGENT}-respawn", "# pagefusion-guest: end"
        lost = [[begin, line, "ours::once:x"], [line, end, "ours::once:x"], [begin, line, end, "ours::once:x", begin],
                [end, "ours::once:x", begin], [begin, line, begin, "ours::once:x", line, end]]
        root = self.root("inittab")
        before = root.files()
        self.succeeds(self.from_outside(root))
        for lines in lost:
            with self.subTest(lines=lines):
                root.write("/etc/inittab", "\n".join([*self.OTHERS, *lines]) + "\n", 0o640)
                self.before = root.files()
                for arguments in ((), ("--uninstall",)):
                    self.refused(root, self.from_outside(root, *arguments), "one is missing, or one is there twice.*"
                                 "Nothing was changed")
        lines = [self.OTHERS[0], begin, *self.OTHERS[1:], line + " init", end]
        root.write("/etc/inittab", "\n".join(lines) + "\n", 0o640)
        self.succeeds(self.from_outside(root))
        self.assertEqual(root.read("/etc/inittab").splitlines(), [*self.OTHERS, begin, line, end])
        root.write("/etc/inittab", "\n".join([begin, line, *self.OTHERS, end]) + "\n", 0o640)
        self.succeeds(self.from_outside(root, "--uninstall"))
        self.assertEqual(root.files(), before)

    def test_zero_bytes(self):
        """As of a disk that was not written: a shell would drop them."""
        root = self.root("inittab")
        root.write("/etc/inittab", "::sysinit:/bin/true\n\0\0\0")
        self.before = root.files()
        self.refused(root, self.from_outside(root), "could not read .*inittab as text. Nothing was changed")


class PowerCut(Case):
    """Whenever it is, what is there works or can be removed."""

    def test_order(self):
        """What has its new name is on the disk, and the manifest is the first."""
        log = os.path.join(self.scratch, "log")
        for name in ("mv", "sync"):
            path = self.fake(name, f'shift $(($# > 0 ? $# - 1 : 0))\necho "{name} ${{1-}}" >>{log}\n' + (
                'exec /bin/mv -f "$1.new~" "$1"\n' if name == "mv" else ""))
        root = self.root("inittab")
        mv_inittab = "mv " + root.path("/etc/inittab")
        for arguments in ((), ("--uninstall",)):
            self.succeeds(self.from_outside(root, *arguments, PATH=path))
            with open(log, encoding="utf-8") as f:
                done = f.read().splitlines()
            os.unlink(log)
            self.assertEqual(done[-1], "sync ")
            self.assertEqual(done[done.index(mv_inittab) - 1], "sync ")
            if arguments:
                self.assertEqual(done[-2], "sync ")  # before the manifest goes
            else:
                self.assertEqual(done[:2], ["sync ", "mv " + root.path(PREFIX + "/manifest")])

    def cut_anywhere(self, prepare):
        """Ends install.sh before each renaming but the manifest's, the first: then everything can be removed."""
        count = os.path.join(self.scratch, "count")
        for n in range(1, 100):
            root, before = prepare()
            path = self.fake("mv", f"echo >>{count}\n[ $(wc -l <{count}) -le {n} ] || kill -9 $PPID\n"
                             'exec /bin/mv "$@"\n')
            done = self.from_outside(root, PATH=path)
            os.unlink(count)
            self.succeeds(self.from_outside(root, "--uninstall"))
            self.assertEqual(root.files(), before, n)
            shutil.rmtree(root.directory)
            if done.returncode == 0:
                break
        self.assertGreater(n, 10)

    def test_first_time(self):
        def prepare():
            root = self.root("inittab")
            return root, root.files()
        self.cut_anywhere(prepare)

    def test_upgrade(self):
        """From another init, so that there is something to be removed."""
        for kind in ("inittab", "openrc"):
            def prepare(kind=kind):
                root = self.root(kind)
                self.succeeds(self.from_outside(root))
                become_systemd(root)
                before = self.root(kind, "other")
                become_systemd(before)
                files = before.files()
                shutil.rmtree(before.directory)
                return root, files
            self.cut_anywhere(prepare)


class Foreign(Case):
    """A root whose owner is not this machine's: nothing there leads out of it."""

    def setUp(self):
        super().setUp()
        self.outside = os.path.join(self.scratch, "outside")
        os.mkdir(self.outside)
        self.victim = os.path.join(self.outside, "victim")
        with open(self.victim, "w", encoding="utf-8") as f:
            f.write("precious\n")
        os.chmod(self.victim, 0o600)

    def check_outside(self):
        """That it is as it was."""
        self.assertEqual(os.listdir(self.outside), ["victim"])
        self.assertEqual(os.stat(self.victim).st_mode & 0o7777, 0o600)
        with open(self.victim, encoding="utf-8") as f:
            self.assertEqual(f.read(), "precious\n")

    def installed_files(self, kind):
        """The paths of all that is written or replaced there."""
        root = self.root(kind, "example")
        before = root.files()
        self.succeeds(self.from_outside(root))
        return [path for path, what in root.files().items()
                if before.get(path) != what and not os.path.isdir(root.path(path))]

    def test_links_beside(self):
        """Where the new files are written first."""
        for kind in KINDS:
            paths = self.installed_files(kind)
            self.assertIn(PREFIX + "/manifest", paths)
            root = self.root(kind)
            for path in [*(path + ".new~" for path in paths), PREFIX + "/manifest.room~"]:
                os.makedirs(os.path.dirname(root.path(path)), exist_ok=True)
                os.symlink(self.victim, root.path(path))
            with self.subTest(kind=kind):
                self.succeeds(self.from_outside(root))
                self.check_outside()
                left = [path for path in root.files() if path.endswith("~") and "/etc/rc" not in path]
                self.assertEqual(left, [])  # the links in /etc/rc?.d are made in their places

    def test_links_in_their_places(self):
        """To a directory: moved there, a file would be in it."""
        for kind, path in (("systemd", STARTERS["systemd"][0]), ("openrc", STARTERS["openrc"][1]), ("none", AGENT),
                           ("none", PREFIX + "/manifest"), ("inittab", "/etc/inittab")):
            with self.subTest(path=path):
                root = self.root(kind)
                if os.path.exists(root.path(path)):
                    os.unlink(root.path(path))
                os.makedirs(os.path.dirname(root.path(path)), exist_ok=True)
                os.symlink(self.outside, root.path(path))
                self.before = root.files()
                self.refused(root, self.from_outside(root), "leads to one|is a link|could not read")
                self.check_outside()
                shutil.rmtree(root.directory)

    def test_inittab_elsewhere(self):
        """Not even read."""
        root = self.root("inittab")
        os.unlink(root.path("/etc/inittab"))
        os.symlink(self.victim, root.path("/etc/inittab"))
        self.before = root.files()
        self.refused(root, self.from_outside(root), "is a link")

    def test_runlevels_elsewhere(self):
        root = self.root("sysvinit")
        os.rmdir(root.path("/etc/rc3.d"))
        os.symlink(self.outside, root.path("/etc/rc3.d"))
        self.succeeds(self.from_outside(root))
        self.check_outside()

    def test_manifest_that_leads_out(self):
        """Whatever is said there to be ours."""
        for arguments in ((), ("--uninstall",)):
            with self.subTest(arguments=arguments):
                root = self.root("none")
                self.succeeds(self.from_outside(root))
                os.symlink(self.outside, root.path("/away"))
                for name in ("run", "var/log"):
                    shutil.rmtree(root.path("/" + name))
                os.symlink(self.outside, root.path("/run"))
                os.mkdir(os.path.join(self.outside, "pagefusion-agent"))
                root.write(PREFIX + "/manifest", root.read(PREFIX + "/manifest") +
                           "f /away/victim\nf /../outside/victim\nd /away/pagefusion-agent\n")
                self.from_outside(root, *arguments)
                os.rmdir(os.path.join(self.outside, "pagefusion-agent"))
                self.check_outside()
                shutil.rmtree(root.directory)


class Respawn(Case):
    """What looks after the agent, with one that ends both."""

    LOG = "/var/log/pagefusion-agent.log"

    def run_once(self, root):
        """Starts it; returns when all has ended."""
        root.write(AGENT, "#!/bin/sh\necho said\nkill -TERM $PPID\nexec sleep 100\n", 0o755)
        self.succeeds(root.run(AGENT + "-respawn", timeout=60))

    def test_links_for_logs(self):
        """In a directory to which others can write: they are replaced."""
        root = self.root("none")
        self.succeeds(self.from_outside(root))
        root.write("/victim", "precious\n")
        os.mkdir(root.path("/directory"))
        for target in ("/victim", "/new", "/directory"):
            for text in (None, "x" * 70000 + "\n"):
                with self.subTest(target=target, text=text and len(text)):
                    os.makedirs(root.path("/var/log"), exist_ok=True)
                    os.symlink(target, root.path(self.LOG + ".old" if text else self.LOG))
                    if text:
                        root.write(self.LOG, text)
                    self.run_once(root)
                    self.assertEqual(root.read("/victim"), "precious\n")
                    self.assertFalse(os.path.lexists(root.path("/new")))
                    self.assertEqual(os.listdir(root.path("/directory")), [])
                    self.assertFalse(os.path.islink(root.path(self.LOG)))
                    self.assertIn("starting " + AGENT, root.read(self.LOG))
                    if text:
                        self.assertEqual(root.read(self.LOG + ".old"), text[-65536:])
                    else:
                        self.assertNotIn(self.LOG + ".old", root.files())
                    shutil.rmtree(root.path("/var/log"))

    def test_log_before(self):
        """It can still be read."""
        root = self.root("none")
        self.succeeds(self.from_outside(root))
        self.run_once(root)
        first = root.read(self.LOG)
        self.assertIn(": said\n", first)
        self.run_once(root)
        self.assertEqual(root.read(self.LOG + ".old"), first)
        self.assertEqual(os.stat(root.path(self.LOG)).st_mode & 0o777, 0o600)


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
        become_systemd(root)
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
