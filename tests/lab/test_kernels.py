# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest additions on kernels of three Debian releases, in guests that have neither systemd nor udev.

Each guest has busybox for its init and gets the additions as a user would: it mounts the CD and runs install.sh. The
tests run in the order of their names, in one boot, and the first that fails is the last.
"""
import sys
import unittest

import additions
import image as lab_image
import oracle
from busybox_guest import BusyboxGuest, payload
from image import BIG_FILE, BIG_PAGES
from lab import run_tests
from libvirt_lab import wait_until
from product import SHARED, VM_HINTED

GUEST_MIB = 192
EVENT_SECONDS = 120
PROGRAM_PAGES = 200  # of busybox, at least
IMAGES, LAB = None, None


class Kernels(unittest.TestCase):
    """Each test leaves the guests for the next."""

    @classmethod
    def setUpClass(cls):
        LAB.out.say(f"starting libvirtd, pagefusiond and {len(IMAGES)} guests")
        LAB.start()
        for release, image in IMAGES.items():
            guest = BusyboxGuest(LAB.libvirt, "pf-" + release, LAB.directory, GUEST_MIB)
            LAB.add_guest_with(guest, image, payload(LAB.holder), LAB.insert_cd)
        LAB.boot()
        cls.files = [additions.file_list(guest) for guest in LAB.guests]
        for files in cls.files:
            assert len(files) > 250, files

    def wait_hinted(self, guests, pages):
        """Returns when the agents have reported so many pages."""
        def hinted():
            values = LAB.samples.take()
            return all(values.get(guest.name, {}).get(VM_HINTED, 0) >= pages for guest in guests)
        wait_until(hinted, EVENT_SECONDS, f"{pages} pages to be hinted by each of "
                   + ", ".join(guest.name for guest in guests))

    def wait_shared(self, pages):
        """Returns when so many pages of each guest but one are saved."""
        wanted = pages * (len(LAB.guests) - 1) * 4
        wait_until(lambda: LAB.samples.take()["host"][SHARED] >= wanted, EVENT_SECONDS, f"{wanted} KiB to be shared")

    def test_1_install(self):
        for guest in LAB.guests:
            additions.mount_cd(guest)
            said = guest.must("/mnt/install.sh")
            guest.must("umount /mnt")
            self.assertIn("pagefusion", guest.must("cat /etc/inittab"), said)
        self.wait_hinted(LAB.guests, 1)
        versions = [guest.must("uname -r").split("-")[0] for guest in LAB.guests]
        LAB.out.say(f"installed from the ISO on kernels {', '.join(versions)}; init keeps the agents running")
        self.assertEqual(len({version.rsplit(".", 1)[0] for version in versions}), len(LAB.guests))

    def test_2_killed_agent(self):
        before = [additions.agent_pid(guest) for guest in LAB.guests]
        for guest, pid in zip(LAB.guests, before):
            guest.must(f"kill -9 {pid}")
        after = [wait_until(lambda g=guest, p=pid: additions.agent_pid(g, but=p), EVENT_SECONDS,
                            f"{guest.name}'s agent to come back") for guest, pid in zip(LAB.guests, before)]
        self.assertFalse(set(before) & set(after))
        LAB.out.say("killed agents were started again")

    def test_3_fused(self):
        for guest in LAB.guests:
            guest.hold("files", BIG_FILE)
        self.wait_hinted(LAB.guests, BIG_PAGES + PROGRAM_PAGES)
        self.wait_shared(BIG_PAGES + PROGRAM_PAGES)
        kernel, _most_maps = oracle.kernel_shared([guest.snapshot() for guest in LAB.guests])
        self.assertGreaterEqual(kernel, (BIG_PAGES + PROGRAM_PAGES) * (len(LAB.guests) - 1) * 4)
        LAB.out.say(f"{len(LAB.guests)} kernels share {kernel} KiB")

    def test_4_reboot(self):
        for guest in LAB.guests:
            guest.must("(sleep 1; reboot) >/dev/null 2>&1 &")  # after the answer
        LAB.wait_booted(LAB.guests)
        for guest in LAB.guests:
            guest.hold("files", BIG_FILE)
        self.wait_hinted(LAB.guests, BIG_PAGES)
        self.wait_shared(BIG_PAGES)
        LAB.out.say("after a reboot the agents are there and the guests share again")

    def test_5_uninstall(self):
        for guest, before in zip(LAB.guests, self.files):
            additions.mount_cd(guest)
            guest.must("/mnt/install.sh --uninstall")
            guest.must("umount /mnt")
            wait_until(lambda g=guest: not additions.agent_pid(g), EVENT_SECONDS, f"{guest.name}'s agent to end")
            self.assertEqual(additions.differences(before, additions.file_list(guest)), [], guest.name)
        LAB.out.say("uninstalled: nothing is left behind")


def prepare(options, say):
    """A boot image for each release's kernel."""
    return {release: lab_image.ensure_image(options.cache, options.image_log, say, "busybox", release)
            for release in lab_image.RELEASES}


def make(options, images, out):
    """The lab of these tests."""
    global LAB, IMAGES
    IMAGES = images
    LAB = additions.AdditionsLab(options, None, out)
    return LAB


if __name__ == "__main__":
    sys.exit(run_tests(prepare, make, additions.add_options))
