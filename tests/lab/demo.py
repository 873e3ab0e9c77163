# SPDX-License-Identifier: LGPL-2.1-or-later
"""The demo: real guests under libvirt, the real agent, service and shim, and counts that owe nothing to them.

The order of things is: image, a libvirtd of our own, pagefusiond, guests with the flag turned on, boot, fuse until
nothing changes; then have every agent look once more and the walkers walk, pause all guests and measure; then one
guest overwrites a page of a fused file. What was started is taken away again whatever happens.
"""
import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time

import guest as lab_guest
import host_features
import image as lab_image
import oracle
import product as lab_product
from libvirt_lab import SIGNALS, LabError, Libvirt, die_with_parent, enter_namespaces, wait_until

GUEST_MIB = 512
BOOT_SECONDS = 240
FUSE_SECONDS = 240
STABLE_SECONDS = 10
TTY = sys.stdout.isatty()


class Interrupted(Exception):
    """A signal asked us to end."""


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


class Demo:
    """One run."""

    def __init__(self, options, image, out):
        self.options = options
        self.image = image
        self.out = out
        self.product = lab_product.Product(options.build)
        self.directory = tempfile.mkdtemp(prefix="pagefusion-demo-", dir="/tmp")
        os.chmod(self.directory, 0o755)  # QEMU's user has to reach its disks
        self.libvirt = Libvirt(self.directory)
        self.guests = []
        self.snapshots = []
        self.samples = None
        self.accel = self.libvirt.accel

    def run(self):
        """All of it; the result as a dictionary."""
        self.prepare()
        self.boot()
        self.fuse()
        result = self.measure()
        result.update(self.overwrite())
        return result

    def prepare(self):
        """libvirtd, service, defined guests."""
        say = self.out.say
        say("libvirtd: starting one of our own, apart from the machine's")
        self.libvirt.start()
        # A copy: QEMU's user may not be able to look into the build directory.
        shim = shutil.copy(self.product.shim_path, self.directory)
        os.chmod(shim, 0o755)

        self.product.start(self.directory, shim)
        initrd = os.path.join(self.directory, "initrd")
        lab_image.write_initrd_with_payload(self.image, initrd, lab_guest.payload(
            self.product.agent_path, self.options.agent_unit))
        for number in range(1, self.options.vms + 1):
            guest = lab_guest.Guest(self.libvirt, f"pf-demo-{number}", self.directory, GUEST_MIB)
            self.guests.append(guest)
            guest.define(self.image, initrd, self.accel)
            wait_until(lambda g=guest: self.product.ctl("showvminfo", g.name).returncode == 0, 10,
                       f"pagefusiond to see {guest.name}")
            self.product.enable(guest.name)
        say(f"{len(self.guests)} guests of {GUEST_MIB} MiB defined, page fusion turned on in each")

    def boot(self):
        """Starts the guests; returns when all they run is up."""
        self.out.say(f"starting the guests ({self.accel})")
        for guest in self.guests:
            guest.start()
        self.samples = lab_product.Samples(self.product, [g.name for g in self.guests])

        def progress(guests, waiting, elapsed):
            self.samples.take()
            self.out.table([f"  booting: {len(guests) - len(waiting)} of {len(guests)} up, {elapsed:.0f} s"])
        lab_guest.wait_ready(self.guests, BOOT_SECONDS * max(1, len(self.guests) // 2), progress)
        self.out.say("all guests are up")

    def fuse(self):
        """Shows the metrics until they stay as they are."""
        deadline = time.monotonic() + FUSE_SECONDS
        while not self.samples.stable(STABLE_SECONDS):
            self.show(self.samples.take())
            if time.monotonic() > deadline:
                raise LabError(f"the metrics still change, or an agent is silent, after {FUSE_SECONDS} s")
            time.sleep(0.2)

    def show(self, values):
        """The live table."""
        host = values["host"]
        lines = [f"  {'':12}{'hinted':>9}{'fused':>9}{'runs':>7}{'shared':>12}"]
        for guest in self.guests:
            vm = values.get(guest.name, {})
            lines.append(f"  {guest.name:12}{vm.get(lab_product.VM_HINTED, 0):>9}{vm.get(lab_product.VM_FUSED, 0):>9}"
                         f"{vm.get(lab_product.VM_RUNS, 0):>7}{vm.get(lab_product.VM_SHARED, 0):>8} KiB")
        lines.append(f"  {'host saves':37}{host.get(lab_product.SHARED, 0):>8} KiB")
        self.out.table(lines if TTY else [lines[-1]] + lines[1:-1])

    def settle(self):
        """Has every agent look at what runs now, then waits until nothing changes."""
        for guest in self.guests:
            guest.ask("rescan")
        self.samples.changed = time.monotonic()
        self.fuse()

    def measure(self):
        """Pauses the guests and counts."""
        self.settle()
        self.out.say("walking through the guests' mappings, then pausing them to count")
        walked = [guest.ask("walk") for guest in self.guests]
        for guest in self.guests:
            self.libvirt.virsh("suspend", guest.name)
        values = self.samples.take()
        host, vms = values["host"], [values[g.name] for g in self.guests]
        self.snapshots = [oracle.Snapshot(g, w) for g, w in zip(self.guests, walked)]
        kernel_kib, most_maps = oracle.kernel_shared(self.snapshots)
        result = {
            "vms": len(self.guests), "accel": self.accel, "guest_mib": GUEST_MIB,
            "eligible_pages": sum(len(s.gfns) for s in self.snapshots),
            "hinted_pages": sum(vm[lab_product.VM_HINTED] for vm in vms),
            "oracle_shared_kib": oracle.shareable_kib(self.snapshots),
            "shared_kib": host[lab_product.SHARED],
            "kernel_shared_kib": kernel_kib,
            "seconds_to_90_percent": self.samples.seconds_to(0.9),
            "hint_to_fused_ms_p90": round(host.get(lab_product.HINT_TO_FUSED, 0) / 1000, 3),
            "host_cpu_seconds": self.cpu_seconds(),
            "frames": host[lab_product.FRAMES] // 4,
            "runs": sum(vm[lab_product.VM_RUNS] for vm in vms),
            "maps_per_vm": most_maps,
        }
        for guest in self.guests:
            self.libvirt.virsh("resume", guest.name)
        return result

    def cpu_seconds(self):
        """Of the service and of the shim's threads."""
        service = oracle.cpu_seconds(oracle.children(self.product.service.pid))
        shims = oracle.cpu_seconds([g.pid() for g in self.guests], "pf-")
        return round(service + shims, 2)

    def spare_page(self):
        """(path, file page) of a page that every guest has fused, of the file that only the walker maps."""
        def is_spare(name):
            return "/_codecs_jp." in name
        name, runs = next((n, r) for n, r in self.snapshots[0].files if is_spare(n))
        pages = [first + i for first, _pfn, n in runs for i in range(n)]
        for page in reversed(pages):
            gfns = [s.page_of(is_spare, page) for s in self.snapshots]
            if None not in gfns:
                frames = {oracle.host_page(s, gfn) for s, gfn in zip(self.snapshots, gfns)}
                if len(frames) == 1 and None not in frames:
                    return name, page, gfns
        raise LabError(f"no page of {name} is fused in every guest")

    def overwrite(self):
        """One guest overwrites a fused page; the others must not see it."""
        path, page, gfns = self.spare_page()
        first, others = self.guests[0], self.guests[1:]
        before = [g.ask("hash", path=path, page=page)["sha256"] for g in self.guests]
        revoked = self.samples.take()[first.name][lab_product.VM_REVOKED]
        self.out.say(f"{first.name} overwrites page {page} of {path}")
        new = first.ask("write", path=path, page=page)["sha256"]
        wait_until(lambda: self.samples.take()[first.name][lab_product.VM_REVOKED] > revoked, 20,
                   "the overwritten page to be counted as revoked")
        after = [g.ask("hash", path=path, page=page)["sha256"] for g in others]
        private = oracle.host_page(self.snapshots[0], gfns[0]) is None
        intact = after == before[1:] and len(set(before)) == 1 and new != before[0] and private
        self.out.say("the page is private again; " + ("the others still read the old bytes" if intact else
                                                      "BUT ANOTHER GUEST DOES NOT READ THE OLD BYTES"))
        return {"revoked_pages": self.samples.take()["host"][lab_product.REVOKED], "neighbour_intact": intact}

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


def judge(result):
    """[(whether it holds, what was wanted, what was found)]"""
    hinted = result["hinted_pages"] / max(1, result["eligible_pages"])
    found = result["shared_kib"] / max(1, result["oracle_shared_kib"])
    kernel = result["shared_kib"] / max(1, result["kernel_shared_kib"])
    return [
        (hinted >= 0.95, "hinted, of the pages that are eligible: at least 95 %", f"{hinted:.1%}"),
        (found >= 0.95, "shared, of what the oracle found shareable: at least 95 %", f"{found:.1%}"),
        (0.99 <= kernel <= 1.01, "shared, of what the kernel shows as shared: 99 to 101 %", f"{kernel:.1%}"),
        (result["neighbour_intact"] is True, "after an overwrite the neighbours read the old bytes",
         "yes" if result["neighbour_intact"] else "NO"),
    ]


def summary(result, out):
    """Prints it; whether every bound held."""
    verdicts = judge(result)
    out.say(f"{result['vms']} guests ({result['accel']}) share {result['shared_kib'] / 1024:.1f} MiB "
            f"in {result['frames']} frames and {result['runs']} runs; "
            f"90 % of it {result['seconds_to_90_percent']} s after the second guest's first hint, "
            f"for {result['host_cpu_seconds']} s of host CPU")
    for holds, wanted, value in verdicts:
        print(f"  {'pass' if holds else 'FAIL'}  {wanted}: {value}")
    return all(holds for holds, _wanted, _value in verdicts)


def parse(argv):
    """The command line."""
    parser = argparse.ArgumentParser(prog="run demo", description="Real guests share memory.")

    def vms(text):
        if not text.isdigit() or not 2 <= int(text) <= 32:
            raise argparse.ArgumentTypeError(f"{text!r}: a number from 2 to 32")
        return int(text)
    parser.add_argument("--vms", type=vms, default=2, metavar="N", help="number of guests (default 2)")
    parser.add_argument("--json", metavar="FILE", help="write the result there")
    parser.add_argument("--build", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--with-parent", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--agent-unit", default="", help=argparse.SUPPRESS)
    parser.add_argument("--image-log", default="/dev/null", help=argparse.SUPPRESS)
    parser.add_argument("--cache", default=lab_image.default_cache(), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.json and not os.path.isdir(os.path.dirname(os.path.abspath(options.json))):
        parser.error(f"--json: the directory of {options.json} does not exist")
    return options


def interrupt(_signum, _frame):
    """Ends the run, once."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    raise Interrupted()


def conduct(demo, options):
    """Runs the demo; the exit status."""
    try:
        result = demo.run()
        if options.json:
            with open(options.json, "w", encoding="utf-8") as f:
                json.dump(result, f, indent=2)
                f.write("\n")
        return 0 if summary(result, demo.out) else 1
    except Interrupted:
        demo.out.say("interrupted: cleaning up")
        return 130
    except (LabError, OSError, ValueError, KeyError, StopIteration) as error:
        demo.explain()
        print(f"demo: {error or type(error).__name__}", file=sys.stderr)
        return 1


def main(argv):
    """The command."""
    options = parse(argv)
    if os.geteuid() != 0:
        print("demo: needs root: sudo ./run demo", file=sys.stderr)
        return 1
    problem = host_features.problem()
    if problem:
        print(f"demo: {problem}", file=sys.stderr)
        return 1
    if options.with_parent:
        die_with_parent()
    for signum in SIGNALS:
        signal.signal(signum, interrupt)
    demo = None
    out = Output()
    try:
        # Before the lab has a network of its own, which leads nowhere.
        image = lab_image.ensure_image(options.cache, options.image_log, out.say)
        enter_namespaces()
        demo = Demo(options, image, out)
        return conduct(demo, options)
    except (LabError, lab_image.ImageError, Interrupted) as error:
        print(f"demo: {error or 'interrupted'}", file=sys.stderr)
        return 1
    finally:
        if demo:
            demo.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
