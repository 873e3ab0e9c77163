# SPDX-License-Identifier: LGPL-2.1-or-later
"""`./run package`: two builds in different places give the same bytes, and what they give is right.

The first is made in the tree, and its packages are left in --dist for the other tests. The second is made by another
user, from a copy without git, with another umask, locale, time zone, home and directory for temporary files.
"""
import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

NOBODY = 65534
OPTIONS = None
# Each with the reason why it is right here.
LINTIAN_MAY_SAY = {
    "package-supports-alternative-init-but-no-init.d-script": "without systemd there is install.sh",
    "systemd-service-file-missing-install-key": "udev starts it; nothing enables it",
}


def output(*command, **options):
    """What a command writes; it must succeed."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout


def source_files(source):
    """The tree's files: what git knows or would add, or without git everything but what was built."""
    if os.path.exists(os.path.join(source, ".git")):
        names = output("git", "-c", "safe.directory=*", "-C", source, "ls-files", "-z", "--cached", "--others",
                       "--exclude-standard").split("\0")
    else:
        names = output("find", ".", "(", "-path", "./build", "-o", "-path", "./dist", "-o", "-path", "./.cache", ")",
                       "-prune", "-o", "-type", "f", "-print0", cwd=source).split("\0")
    return [name for name in names if name and os.path.exists(os.path.join(source, name))]


def source_time(source):
    """The time that packages carry."""
    if os.path.exists(os.path.join(source, ".git")):
        return int(output("git", "-c", "safe.directory=*", "-C", source, "log", "-1", "--format=%ct"))
    return int(os.stat(os.path.join(source, "CMakeLists.txt")).st_mtime)


def copy_source(source, target):
    """A copy as `git archive` makes it: all files have the time of the commit."""
    when = source_time(source)
    for name in source_files(source):
        path = os.path.join(target, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        shutil.copy(os.path.join(source, name), path)
        os.utime(path, (when, when))


def build_elsewhere(tree, directory):
    """The second build, of the copy that is at tree in directory. Returns the directory of its packages."""
    for name in ("out", "home", "tmp"):
        os.mkdir(os.path.join(directory, name))
    for path, _, names in os.walk(directory):
        for each in [path, *(os.path.join(path, name) for name in names)]:
            os.chown(each, NOBODY, NOBODY, follow_symlinks=False)
    environment = {"PATH": os.environ["PATH"], "HOME": os.path.join(directory, "home"), "TZ": "Asia/Kathmandu",
                   "LC_ALL": "C.UTF-8", "USER": "nobody", "TMPDIR": os.path.join(directory, "tmp")}
    run_build([os.path.join(tree, "packaging/package.sh"), "--out", os.path.join(directory, "out")], cwd="/",
              env=environment, user=NOBODY, group=NOBODY, extra_groups=[], umask=0o077)
    return os.path.join(directory, "out")


def run_build(command, **options):
    """package.sh; what it writes is shown when it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options)
    if done.returncode:
        sys.exit(f"{done.stdout[-8000:]}\n{command} failed")
    return done.stdout


class Packages(unittest.TestCase):
    """What was built."""

    @classmethod
    def setUpClass(cls):
        shutil.rmtree(OPTIONS.dist, ignore_errors=True)
        cls.scratch = tempfile.mkdtemp(prefix="pf-packages-")
        cls.addClassCleanup(shutil.rmtree, cls.scratch)
        cls.elsewhere = tempfile.mkdtemp(prefix="pf-elsewhere-", dir="/var/tmp")
        cls.addClassCleanup(shutil.rmtree, cls.elsewhere)
        cls.copy = os.path.join(cls.elsewhere, "at/a/much/longer/path")
        copy_source(OPTIONS.source, cls.copy)
        cls.log = run_build([os.path.join(OPTIONS.source, "packaging/package.sh"), "--out", OPTIONS.dist])
        with open(os.path.join(OPTIONS.source, "CMakeLists.txt"), encoding="utf-8") as f:
            cls.version = re.search(r"^project\(pagefusion VERSION (\S+)", f.read(), re.M)[1]
        cls.deb = f"pagefusion-guest_{cls.version}_amd64.deb"
        cls.rpm = f"pagefusion-guest-{cls.version}-1.x86_64.rpm"
        cls.tarball = f"pagefusion-guest-{cls.version}-x86_64.tar.gz"
        cls.iso = "pagefusion-guest-additions.iso"

    def path(self, name):
        """Of a package."""
        return os.path.join(OPTIONS.dist, name)

    def unpacked(self):
        """The tarball's directory."""
        subprocess.run(["tar", "-C", self.scratch, "-xf", self.path(self.tarball)], check=True)
        return os.path.join(self.scratch, self.tarball[:-len(".tar.gz")])

    def test_files(self):
        self.assertEqual(sorted(os.listdir(OPTIONS.dist)), sorted([self.deb, self.rpm, self.tarball, self.iso]))

    def test_same_bytes_elsewhere(self):
        out = build_elsewhere(self.copy, self.elsewhere)
        for name in (self.deb, self.rpm, self.tarball, self.iso):
            with open(self.path(name), "rb") as here, open(os.path.join(out, name), "rb") as there:
                self.assertTrue(here.read() == there.read(), f"{name} differs")

    def test_static_agent(self):
        agent = os.path.join(self.unpacked(), "files/sbin/pagefusion-agent")
        headers = output("readelf", "-lW", agent)
        self.assertIn("DYNAMIC", headers)  # position independent
        self.assertNotIn("INTERP", headers)
        empty = os.path.join(self.scratch, "empty")
        os.mkdir(empty)
        shutil.copy(agent, os.path.join(empty, "agent"))
        self.assertEqual(output("chroot", empty, "/agent", "--version"), f"pagefusion-agent {self.version}\n")

    def test_linker_says_what_is_known(self):
        """package.sh explains why these three are harmless; another one must be looked at."""
        said = set(re.findall(r"warning: Using '(\w+)' in statically linked", self.log))
        self.assertLessEqual(said, {"dlopen", "getaddrinfo", "gethostbyname"})
        compiler = [line for line in self.log.splitlines() if re.search(r"\.[ch]:\d+:\d+: warning", line)]
        self.assertEqual(compiler, [])

    def test_openssl_of_the_guest_is_left_alone(self):
        """A configuration that allows FIPS algorithms alone and loads a module that is not there."""
        path = os.path.join(self.scratch, "openssl.cnf")
        with open(path, "w", encoding="utf-8") as f:
            f.write("openssl_conf = all\n[all]\nproviders = p\nalg_section = a\n[a]\ndefault_properties = fips=yes\n"
                    "[p]\nfips = f\n[f]\nmodule = /nowhere/fips.so\nactivate = 1\n")
        agent = os.path.join(self.unpacked(), "files/sbin/pagefusion-agent")
        dump = output(agent, "--config", "/dev/null", "--dump", env={"OPENSSL_CONF": path})
        self.assertGreater(int(re.search(r'"pages":(\d+)', dump.split('"ram"')[1].split("]", 1)[1])[1]), 0)

    def test_iso(self):
        listing = output("xorriso", "-indev", self.path(self.iso), "-find", "/", "-exec", "lsdl",
                         stderr=subprocess.DEVNULL)
        rows = re.findall(r"^(\S+) +\d+ +0 +0 .*? '/(.*)'$", listing, re.M)
        found = {name: mode for mode, name in rows}
        self.assertEqual(len(found), len(listing.splitlines()), "all belongs to root")
        for name, mode in {"install.sh": "-rwxr-xr-x", "README.txt": "-rw-r--r--", "LICENSE": "-rw-r--r--",
                           "VERSION": "-rw-r--r--", self.deb: "-rw-r--r--", self.rpm: "-rw-r--r--",
                           "files/sbin/pagefusion-agent": "-rwxr-xr-x"}.items():
            self.assertEqual(found.get(name), mode, name)
        about = output("xorriso", "-indev", self.path(self.iso), "-pvd_info", "-toc", stderr=subprocess.STDOUT)
        self.assertRegex(about, r"Volume id *: *'?PAGEFUSION'?")
        with open(self.path(self.iso), "rb") as f:
            self.assertIn(b"%/E", f.read(64 << 10))  # Joliet's mark

    def test_iso_holds_what_the_others_are(self):
        subprocess.run(["xorriso", "-osirrox", "on", "-indev", self.path(self.iso), "-extract", "/",
                        os.path.join(self.scratch, "iso")], check=True, stderr=subprocess.DEVNULL)
        for name in (self.deb, self.rpm):
            subprocess.run(["cmp", self.path(name), os.path.join(self.scratch, "iso", name)], check=True)
            os.unlink(os.path.join(self.scratch, "iso", name))
        subprocess.run(["diff", "-r", self.unpacked(), os.path.join(self.scratch, "iso")], check=True)

    def test_deb(self):
        said = output("lintian", "--allow-root", "--display-info", self.path(self.deb))
        for line in said.splitlines():
            self.assertIn(line.split()[2], LINTIAN_MAY_SAY, line)
        self.assertEqual(output("dpkg-deb", "-f", self.path(self.deb), "Version").strip(), self.version)

    def test_deb_says_where_it_installs(self):
        """What it depends on has other names in later releases, which know the older ones too."""
        release = output("sh", "-c", ". /etc/os-release && echo $ID-$VERSION_ID").strip()
        names, systems = {
            "debian-12": (("libelf1", "libssl3"), "Debian 12 and later, Ubuntu 24.04 and later"),
            "debian-13": (("libelf1t64", "libssl3t64"), "Debian GNU/Linux 13 and later"),
        }[release]
        depends = output("dpkg-deb", "-f", self.path(self.deb), "Depends")
        for name in names:
            self.assertRegex(depends, rf"\b{name} \(")
        with open(os.path.join(self.unpacked(), "README.txt"), encoding="utf-8") as f:
            self.assertRegex(f.read(), rf"\.deb +{systems}, with systemd\n")

    def test_packages_bring_what_is_for_guests(self):
        """The same text as the ISO's, and not what is for who builds all of it."""
        with open(os.path.join(self.unpacked(), "README.txt"), encoding="utf-8") as f:
            text = f.read()
        docs = "./usr/share/doc/pagefusion-guest/"
        tree = output("dpkg-deb", "-c", self.path(self.deb))
        self.assertNotIn(docs + "README.md", tree)
        for name, command in ((self.deb, ["dpkg-deb", "--fsys-tarfile", "/dev/stdin"]),
                              (self.rpm, ["rpm2archive", "-n", "-"])):
            with self.subTest(name=name), open(self.path(name), "rb") as f:
                tar = subprocess.run(command, check=True, stdin=f, stdout=subprocess.PIPE).stdout
                unpacked = subprocess.run(["tar", "-xO", docs + "README.txt"], check=True, input=tar,
                                          stdout=subprocess.PIPE).stdout
                self.assertEqual(unpacked.decode(), text)

    def test_rpm(self):
        subprocess.run(["rpm", "-K", "--nosignature", self.path(self.rpm)], check=True, stdout=subprocess.DEVNULL)
        about = output("rpm", "-qp", "--qf", "%{NAME} %{VERSION} %{ARCH} %{LICENSE} %{BUILDHOST} %{BUILDTIME}\n",
                       self.path(self.rpm))
        self.assertEqual(about, f"pagefusion-guest {self.version} x86_64 LGPL-2.1-or-later localhost "
                                f"{source_time(OPTIONS.source)}\n")
        # Nothing is required that only some distributions have.
        required = output("rpm", "-qp", "--requires", self.path(self.rpm)).splitlines()
        self.assertEqual([line for line in required if not line.startswith("rpmlib(")], ["/bin/sh"] * len(
            [line for line in required if line == "/bin/sh"]))
        self.assertIn("/etc/pagefusion/agent.conf\n", output("rpm", "-qpc", self.path(self.rpm)))
        self.assertNotRegex(output("rpm", "-qplv", self.path(self.rpm)), r"(?m)^\S+ +\d+ (?!root +root)")

    def test_unit(self):
        """Of the package, with a program where it says that it is."""
        root = os.path.join(self.scratch, "deb")
        subprocess.run(["dpkg-deb", "-x", self.path(self.deb), root], check=True)
        path = os.path.join(root, "usr/lib/systemd/system/pagefusion-agent.service")
        with open(path, encoding="utf-8") as f:
            text = f.read()
        self.assertIn("\nExecStart=/usr/sbin/pagefusion-agent\n", text)
        with open(os.path.join(self.unpacked(), "files/pagefusion-agent.service"), encoding="utf-8") as f:
            self.assertEqual(f.read(), text.replace("/usr/sbin/", "/opt/pagefusion-guest/sbin/"))
        with open(path, "w", encoding="utf-8") as f:
            f.write(re.sub(r"(?m)^(ExecStart=).*", r"\1/bin/true", re.sub(r"(?m)^Documentation=.*\n", "", text)))
        done = subprocess.run(["systemd-analyze", "verify", path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, check=False)
        self.assertEqual((done.returncode, done.stdout), (0, ""))
        # Needs no manager. The threshold is what stands in the unit today.
        subprocess.run(["systemd-analyze", "security", "--no-pager", "--offline=yes", "--threshold=40", path],
                       check=True, stdout=subprocess.DEVNULL)


def main():
    """The command."""
    global OPTIONS
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", required=True)
    parser.add_argument("--dist", required=True)
    OPTIONS = parser.parse_args()
    sys.exit(0 if unittest.main(argv=sys.argv[:1], exit=False).result.wasSuccessful() else 1)


if __name__ == "__main__":
    main()
