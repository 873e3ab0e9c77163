# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab's own tools, without a guest: what builds the image and what judges must itself be right."""
import fcntl
import os
import stat
import subprocess
import sys
import tempfile
import unittest

import demo
import additions
import archive
import cpio
import image
from libvirt_lab import Setting
from product import Samples

SOURCE = sys.argv.pop(1) if len(sys.argv) > 1 else "."

GOOD = {"vms": 2, "accel": "tcg", "eligible_pages": 1000, "hinted_pages": 950, "oracle_shared_kib": 1000,
        "shared_kib": 950, "kernel_shared_kib": 950, "neighbour_intact": True}


class Judge(unittest.TestCase):
    """The bounds that the demo holds its result to."""

    def held(self, **changes):
        """Which bounds hold."""
        return [holds for holds, _wanted, _found in demo.judge({**GOOD, **changes})]

    def test_all_hold_at_the_bound(self):
        self.assertEqual(self.held(), [True] * 4)

    def test_each_can_fail(self):
        self.assertEqual(self.held(hinted_pages=949), [False, True, True, True])
        self.assertEqual(self.held(oracle_shared_kib=1001), [True, False, True, True])
        self.assertEqual(self.held(kernel_shared_kib=930), [True, True, False, True])
        self.assertEqual(self.held(kernel_shared_kib=970), [True, True, False, True])
        self.assertEqual(self.held(neighbour_intact=False), [True, True, True, False])

    def test_nothing_at_all_is_no_pass(self):
        nothing = self.held(eligible_pages=0, hinted_pages=0, oracle_shared_kib=0, shared_kib=0, kernel_shared_kib=0)
        self.assertEqual(nothing[:3], [False] * 3)


class Course(unittest.TestCase):
    """Times from the course of the metrics."""

    def test_seconds_to_a_part_of_the_last_value(self):
        samples = Samples(None, ["a", "b"])
        samples.second_hint = 10.0
        samples.course = [(9.0, 0), (10.5, 80), (12.0, 95), (20.0, 100)]
        self.assertEqual(samples.seconds_to(0.9), 2.0)

    def test_never_hinted(self):
        self.assertIsNone(Samples(None, ["a", "b"]).seconds_to(0.9))


class Sources(unittest.TestCase):
    """Which of a machine's archives the guest is made from."""

    def sources(self, *args, made_by=archive.archive_sources, **files):
        """archive_sources() of such an /etc/apt, or another one's."""
        with tempfile.TemporaryDirectory() as etc:
            os.mkdir(etc + "/sources.list.d")
            for name, text in files.items():
                with open(f"{etc}/{name.replace('__', '.list.d/').replace('_', '.')}", "w", encoding="utf-8") as f:
                    f.write(text)
            return made_by("trixie", *args, etc)

    def test_one_line_and_third_parties(self):
        text = self.sources(sources_list="deb http://own.example/debian trixie main contrib\n"
                            "deb [signed-by=/k/other.gpg] http://other.example trixie main\n"
                            "deb http://own.example/debian trixie-backports main\n# deb http://off.example trixie main\n")
        self.assertIn("http://own.example/debian", text)
        self.assertEqual(text.count("Types:"), 1)
        self.assertNotIn("contrib", text)

    def test_deb822(self):
        text = self.sources(sources__debian_sources="Types: deb\n# why\nURIs: http://own.example/debian\n"
                            "Suites: trixie trixie-updates\nComponents: main\n"
                            "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n"
                            "Types: deb\nURIs: http://off.example\nSuites: trixie\nComponents: main\nEnabled: no\n")
        self.assertIn("Suites: trixie trixie-updates", text)
        self.assertNotIn("off.example", text)

    def test_another_release(self):
        text = self.sources("bullseye", made_by=archive.release_sources,
                            sources_list="deb http://security.example/debian trixie-security main\n"
                            "deb [signed-by=/k/other.gpg] http://other.example trixie main\n"
                            "deb http://own.example/debian trixie main contrib\n")
        self.assertEqual(text, "Types: deb\nURIs: http://own.example/debian\nSuites: bullseye\nComponents: main\n\n")

    def test_none(self):
        with self.assertRaises(archive.ImageError):
            self.sources(sources_list="deb http://own.example/debian bookworm main\n")


class Modules(unittest.TestCase):
    """What an initramfs loads."""

    def test_each_after_what_it_needs(self):
        needs = {"virtio-blk": "virtio,virtio_ring", "virtio": "", "virtio_ring": "virtio", "other": ""}
        with tempfile.TemporaryDirectory() as root:
            os.makedirs(root + "/usr/lib/modules/6.1/kernel")
            for name, depends in needs.items():
                with open(f"{root}/usr/lib/modules/6.1/kernel/{name}.ko", "wb") as f:
                    f.write(b"license=GPL\0depends=" + depends.encode() + b"\0")
            found = image._modules(root, ["virtio_blk", "built_in"])
        self.assertEqual(list(found), ["virtio", "virtio_ring", "virtio_blk"])


class Cache(unittest.TestCase):
    """Which images stay."""

    def test_what_somebody_uses_and_what_is_not_ours(self):
        with tempfile.TemporaryDirectory() as cache:
            ours = image._recipe_name("busybox")
            for name in (ours, "guest-old-1", "guest-old-2", "kernel-old-3", "other"):
                os.mkdir(os.path.join(cache, name))
            fd = os.open(cache + "/guest-old-2", os.O_RDONLY)
            fcntl.flock(fd, fcntl.LOCK_SH)
            image._drop_others(cache)
            self.assertEqual(sorted(os.listdir(cache)), sorted([ours, "guest-old-2", "other"]))
            os.close(fd)


class Differences(unittest.TestCase):
    """What an installation left behind."""

    def test_each_kind(self):
        before = {"/a": "1", "/b": "1", "/c": "1"}
        self.assertEqual(additions.differences(before, dict(before)), [])
        self.assertEqual(additions.differences(before, {"/a": "1", "/b": "2", "/d": "1"}),
                         ["changed: /b: 1: 2", "gone: /c", "new: /d"])


class Cpio(unittest.TestCase):
    """What the kernel unpacks."""

    def test_a_reader_finds_what_was_put_in(self):
        archive = cpio.cpio({"a/b/file": (stat.S_IFREG | 0o644, b"seven b"), "link": (stat.S_IFLNK | 0o777, b"a/b")})
        self.assertEqual(len(archive) % 4, 0)
        names, at = [], 0
        while True:
            fields = [int(archive[at + 6 + i * 8:at + 14 + i * 8], 16) for i in range(13)]
            name = archive[at + 110:at + 110 + fields[11] - 1].decode()
            data = at + (110 + fields[11] + 3) // 4 * 4
            if name == "TRAILER!!!":
                break
            names.append((name, archive[data:data + fields[6]]))
            at = data + (fields[6] + 3) // 4 * 4
        self.assertEqual(names, [("a", b""), ("a/b", b""), ("a/b/file", b"seven b"), ("link", b"a/b")])


class Settings(unittest.TestCase):
    """What a test changes of the kernel."""

    def test_put_back_after_an_interrupt(self):
        with tempfile.NamedTemporaryFile("w+", encoding="ascii") as file:
            file.write("0\n")
            file.flush()
            with self.assertRaises(KeyboardInterrupt):
                with Setting(file.name, "1"):
                    self.assertEqual(os.pread(file.fileno(), 9, 0), b"1")
                    raise KeyboardInterrupt
            self.assertEqual(os.pread(file.fileno(), 9, 0), b"0\n")


class Run(unittest.TestCase):
    """Bad arguments: one line that says what, a status that is not zero, and nothing done."""

    def refused(self, *args):
        """The line."""
        done = subprocess.run([os.path.join(SOURCE, "run"), *args], capture_output=True, text=True, check=False,
                              stdin=subprocess.DEVNULL)
        self.assertNotEqual(done.returncode, 0, args)
        line = done.stderr.strip().splitlines()[-1]
        self.assertTrue(line.startswith("run: "), line)
        self.assertNotIn("==", done.stdout)
        return line

    def test_verbs_and_arguments(self):
        self.assertIn("dance", self.refused("dance"))
        self.assertIn("2 to 32", self.refused("demo", "--vms", "1"))
        self.assertIn("2 to 32", self.refused("demo", "--vms", "two"))
        self.assertIn("--vms", self.refused("demo", "--vms"))
        self.assertIn("--fast", self.refused("demo", "--fast", "yes"))
        self.assertIn("does not exist", self.refused("demo", "--json", "no/such/directory/file"))
        self.assertIn("slow", self.refused("test", "slow"))
        self.assertIn("one label", self.refused("test", "unit", "vmm"))
        self.assertIn("no argument", self.refused("check", "all"))
        self.assertIn("1 to 604800", self.refused("fuzz", "--seconds", "0"))
        self.assertIn("1 to 604800", self.refused("fuzz", "--seconds", "604801"))
        self.assertIn("--seconds", self.refused("fuzz", "--seconds"))
        self.assertIn("--targets", self.refused("fuzz", "--targets", "vm"))
        self.assertIn("does not exist", self.refused("fuzz", "--json", "no/such/directory/file"))


if __name__ == "__main__":
    unittest.main()
