# SPDX-License-Identifier: LGPL-2.1-or-later
"""Root file systems to install in: busybox and what makes a system of each kind recognizable.

What would start or register something is a script in them that only writes down that it was called.
"""
import hashlib
import os
import shutil
import stat
import subprocess
import tarfile

KINDS = ("systemd", "openrc", "sysvinit", "inittab", "none")
PORT = "/dev/virtio-ports/org.pagefusion.agent.0"
CALLED = {
    "systemd": ["systemctl", "udevadm"],
    "openrc": ["rc-service", "rc-update"],
    "sysvinit": [],
    "inittab": [],
    "none": [],
}
INITTAB = "::sysinit:/bin/true\n# A comment.\ntty1::askfirst:/bin/sh\n"
RECORDER = "#!/bin/sh\necho \"${0##*/} $*\" >>/calls\n"


class Root:
    """One root file system, in a directory that is removed by close()."""

    def __init__(self, directory, kind):
        self.directory = directory
        self.kind = kind
        for name in ("bin", "sbin", "usr/bin", "usr/sbin", "etc", "dev", "proc", "tmp", "media"):
            os.makedirs(self.path("/" + name))
        os.mknod(self.path("/dev/null"), 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        os.chmod(self.path("/tmp"), 0o1777)
        shutil.copy(shutil.which("busybox"), self.path("/bin/busybox"))
        for name in subprocess.run([self.path("/bin/busybox"), "--list"], check=True, capture_output=True,
                                   text=True).stdout.split():
            if name not in ("busybox", "init", "dpkg", "dpkg-deb", "rpm", "rpm2cpio"):
                os.symlink("busybox", self.path("/bin/" + name))
        for name in CALLED[kind]:
            self.record(name)
        getattr(self, "_make_" + kind)()

    def path(self, path):
        """Of what is at path in there."""
        return self.directory + path

    def write(self, path, text, mode=0o644):
        """Makes a file."""
        os.makedirs(os.path.dirname(self.path(path)), exist_ok=True)
        with open(self.path(path), "w", encoding="utf-8") as f:
            f.write(text)
        os.chmod(self.path(path), mode)

    def read(self, path):
        """A file's text."""
        with open(self.path(path), encoding="utf-8") as f:
            return f.read()

    def record(self, name):
        """Makes a command that only writes down its calls."""
        self.write("/usr/bin/" + name, RECORDER, 0o755)

    def calls(self):
        """Those since the last time."""
        try:
            text = self.read("/calls")
        except FileNotFoundError:
            return []
        os.unlink(self.path("/calls"))
        return text.splitlines()

    def _make_systemd(self):
        self.write("/lib/systemd/systemd", "", 0o755)
        os.symlink("/lib/systemd/systemd", self.path("/sbin/init"))

    def _make_openrc(self):
        # As Alpine: its init is busybox's, with an inittab.
        os.symlink("/bin/busybox", self.path("/sbin/init"))
        self.write("/sbin/openrc-run", "", 0o755)
        self.write("/etc/inittab", INITTAB)
        for name in ("init.d", "runlevels/default"):
            os.makedirs(self.path("/etc/" + name))

    def _make_sysvinit(self):
        shutil.copy(self.path("/bin/busybox"), self.path("/sbin/init"))
        self.write("/etc/inittab", INITTAB)
        os.mkdir(self.path("/etc/init.d"))
        for level in range(7):
            os.mkdir(self.path(f"/etc/rc{level}.d"))

    def _make_inittab(self):
        os.symlink("../bin/busybox", self.path("/sbin/init"))
        self.write("/etc/inittab", INITTAB, 0o640)

    def _make_none(self):
        pass

    def files(self):
        """Everything in there: path -> what it is. A database of rpm changes when it is only read."""
        found = {}
        for directory, names, files in os.walk(self.directory):
            names[:] = [name for name in names if not os.path.ismount(os.path.join(directory, name))]
            for name in [*names, *files]:
                path = os.path.join(directory, name)
                found[path[len(self.directory):]] = _describe(path)
        return {path: what for path, what in found.items()
                if path != "/calls" and not path.startswith("/var/lib/rpm/")}

    def run(self, *command, **options):
        """A command in a chroot there; returns what it did, with its output."""
        return subprocess.run(["chroot", self.directory, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, check=False, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, **options)

    def run_live(self, *command, personality=()):
        """The same with a command that is process 1 of this system, which thus runs; personality is setarch's."""
        return subprocess.run([*personality, "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c",
                               'mount -t proc proc "$1/proc" && exec chroot "$@"', "sh", self.directory, *command],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=240,
                              env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})


def _describe(path):
    """Type, mode, owner and contents of a file."""
    status = os.lstat(path)
    what = [oct(status.st_mode), status.st_uid, status.st_gid]
    if stat.S_ISLNK(status.st_mode):
        return (*what, os.readlink(path))
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as f:
            return (*what, hashlib.file_digest(f, "sha256").hexdigest())
    return tuple(what)


def dpkg(root, *arguments):
    """dpkg on the packages there, whatever they depend on. Makes a database, if there is none."""
    for name in ("info", "updates", "triggers"):
        os.makedirs(root.path("/var/lib/dpkg/" + name), exist_ok=True)
    for name in ("status", "available"):
        with open(root.path("/var/lib/dpkg/" + name), "ab"):
            pass
    return subprocess.run(["dpkg", "--root", root.directory, "--log=/dev/null", "--force-depends", *arguments],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
                          check=False)


def rpm(root, *arguments):
    """rpm on the packages there, whatever they depend on."""
    return subprocess.run(["rpm", "--root", root.directory, "--dbpath", "/var/lib/rpm", "--nodeps", "--force-debian",
                           *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)


def find_package(dist, start, end):
    """The one of which the name begins and ends so."""
    names = [name for name in os.listdir(dist) if name.startswith(start) and name.endswith(end)]
    assert len(names) == 1, names
    return os.path.join(dist, names[0])


def unpack_additions(dist, target):
    """What is on the ISO, but for the .deb and the .rpm. Returns its directory."""
    with tarfile.open(find_package(dist, "pagefusion-guest-", ".tar.gz")) as tar:
        tar.extractall(target)
    (name,) = os.listdir(target)
    return os.path.join(target, name)


def make_newer(additions, version):
    """Makes them those of a later version: another configuration, and a file less."""
    with open(os.path.join(additions, "VERSION"), "w", encoding="utf-8") as f:
        f.write(version + "\n")
    with open(os.path.join(additions, "files/agent.conf"), "a", encoding="utf-8") as f:
        f.write("# New in " + version + "\n")


def newer_deb(deb, version, target):
    """The same package with a later version, at target."""
    tree = target + ".tree"
    subprocess.run(["dpkg-deb", "-R", deb, tree], check=True)
    control = os.path.join(tree, "DEBIAN/control")
    with open(control, encoding="utf-8") as f:
        text = f.read()
    with open(control, "w", encoding="utf-8") as f:
        f.writelines(f"Version: {version}\n" if line.startswith("Version:") else line + "\n"
                     for line in text.splitlines())
    with open(os.path.join(tree, "etc/pagefusion/agent.conf"), "a", encoding="utf-8") as f:
        f.write(f"# New in {version}\n")
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, target], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)
    return target
