# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the demo and the tests with guests have in common: the programs, the guests and their end."""
import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
import unittest

import guest as lab_guest
import image as lab_image
import oracle
from libvirt_lab import SIGNALS, Libvirt, die_with_parent, enter_namespaces, wait_until
from product import Product, Samples

TTY = sys.stdout.isatty()
BOOT_SECONDS = 240


class Output:
    """Lines of progress, and one that is redrawn in place where there is a terminal."""

    def __init__(self):
        self.started = time.monotonic()
        self.live = 0
        self.next_live = 0.0

    def say(self, text):
        """A line that stays."""
        self._end_live()
        print(f"[{time.monotonic() - self.started:5.1f} s] {text}", flush=True)

    def table(self, lines, every=5.0):
        """Lines that replace those before them; without a terminal one line now and then."""
        if TTY:
            if self.live:
                sys.stdout.write(f"\x1b[{self.live}A")
            sys.stdout.write("".join(f"\x1b[2K{line}\n" for line in lines))
            sys.stdout.flush()
            self.live = len(lines)
        elif time.monotonic() >= self.next_live:
            self.next_live = time.monotonic() + every
            print(f"[{time.monotonic() - self.started:5.1f} s] {'; '.join(line.strip() for line in lines)}", flush=True)

    def _end_live(self):
        self.live = 0
        self.next_live = 0.0


class Lab:
    """A libvirtd, a pagefusiond and guests of this run's own. enter_namespaces() comes first."""

    def __init__(self, build, agent_unit, image, out, parent="/tmp"):
        self.agent_unit = agent_unit
        self.image = image
        self.out = out
        self.product = Product(build)
        self.directory = tempfile.mkdtemp(prefix="pagefusion-lab-", dir=parent)
        os.chmod(self.directory, 0o755)  # QEMU's user has to reach its disks
        self.libvirt = Libvirt(self.directory)
        self.guests = []
        self.samples = None

    def start(self, *service_options):
        """libvirtd and the service; returns when both answer."""
        self.libvirt.start()
        # A copy: QEMU's user may not be able to look into the build directory.
        shim = shutil.copy(self.product.shim_path, self.directory)
        os.chmod(shim, 0o755)
        self.product.start(self.directory, shim, *service_options)

    def _default_initrd(self):
        path = os.path.join(self.directory, "initrd")
        if not os.path.exists(path):
            lab_image.write_initrd_with_payload(self.image, path, lab_guest.payload(
                self.product.agent_path, self.agent_unit))
        return path

    def add_guest(self, name, mib, edit=None):
        """Defines a guest that has the agent, and turns page fusion on in it; edit as in Guest.define()."""
        guest = lab_guest.Guest(self.libvirt, name, self.directory, mib)
        self.add(guest, self.image, self._default_initrd(), edit)

    def add_guest_with(self, guest, image, files, edit=None):
        """The same for a guest of another image, or with another payload."""
        initrd = os.path.join(self.directory, guest.name + ".initrd")
        lab_image.write_initrd_with_payload(image, initrd, files)
        self.add(guest, image, initrd, edit)

    def add(self, guest, image, initrd, edit):
        """Defines the guest and turns page fusion on in it."""
        name = guest.name
        self.guests.append(guest)
        guest.define(image, initrd, self.libvirt.accel, edit)
        wait_until(lambda: self.product.ctl("showvminfo", name).returncode == 0, 10, f"pagefusiond to see {name}")
        self.product.enable(name)

    def boot(self):
        """Starts the guests; returns when all they run is up."""
        for guest in self.guests:
            guest.start()
        self.samples = Samples(self.product, [g.name for g in self.guests])
        self.wait_booted(self.guests)

    def wait_booted(self, guests):
        """Returns when all is up in these guests, which are starting."""
        def progress(guests, waiting, elapsed):
            self.samples.take()
            self.out.table([f"  booting: {len(guests) - len(waiting)} of {len(guests)} up, {elapsed:.0f} s"])
        lab_guest.wait_ready(guests, BOOT_SECONDS * max(1, len(guests) // 2), progress)

    def pause(self):
        """Stops all guests."""
        for guest in self.guests:
            self.libvirt.virsh("suspend", guest.name)

    def resume(self):
        """Lets them go on."""
        for guest in self.guests:
            self.libvirt.virsh("resume", guest.name)

    def snapshots(self):
        """Where the guests' RAM is, without what is in it."""
        ram = lab_guest.ask_all(self.guests, "ram")
        return [oracle.Snapshot(guest, {**found, "files": []}) for guest, found in zip(self.guests, ram)]

    def explain(self):
        """The ends of the logs, after a failure."""
        for guest in self.guests:
            if os.path.exists(guest.console):
                print(guest.console_tail(), file=sys.stderr)
        if self.product.service:
            print(self.product.log_tail(), file=sys.stderr)

    def close(self):
        """Takes everything away again; nothing interrupts that."""
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
        for guest in self.guests:
            guest.close()
        self.product.stop()
        self.libvirt.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


def run_tests(prepare, make, add_more=None):
    """
    The main() of a test with guests: images = prepare(options, say) while there is a network, lab = make(options,
    images, out), then the main module's tests until the first that fails; its exit status.
    """
    parser = argparse.ArgumentParser()
    add_options(parser)
    if add_more:
        add_more(parser)
    options = parser.parse_args()
    if options.with_parent:
        die_with_parent()
    out = Output()
    images = prepare(options, out.say)
    enter_namespaces()
    for signum in SIGNALS:
        signal.signal(signum, lambda number, _frame: sys.exit(128 + number))
    lab = make(options, images, out)
    try:
        result = unittest.main(argv=sys.argv[:1], failfast=True, exit=False).result
        if not result.wasSuccessful():
            lab.explain()
        return 0 if result.wasSuccessful() else 1
    finally:
        lab.close()


def add_options(parser):
    """What those who start the demo and the tests say: not for people."""
    parser.add_argument("--build", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--with-parent", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--agent-unit", default="", help=argparse.SUPPRESS)
    parser.add_argument("--image-log", default="/dev/null", help=argparse.SUPPRESS)
    parser.add_argument("--cache", default=lab_image.default_cache(), help=argparse.SUPPRESS)
