# SPDX-License-Identifier: LGPL-2.1-or-later
"""The demo: real guests under libvirt, the real agent, service and shim, and counts that owe nothing to them.

The order of things is: image, a libvirtd of our own, pagefusiond, guests with the flag turned on, boot, fuse until
nothing changes; then have every agent look once more and the walkers walk, pause all guests and measure; then one
guest overwrites a page of a fused file. What was started is taken away again whatever happens.
"""
import argparse
import json
import os
import signal
import sys
import time

import host_features
import image as lab_image
import oracle
import product as lab_product
from lab import TTY, Lab, Output, add_options
from libvirt_lab import SIGNALS, LabError, die_with_parent, enter_namespaces, wait_until

GUEST_MIB = 512
FUSE_SECONDS = 240
STABLE_SECONDS = 10


class Interrupted(Exception):
    """A signal asked us to end."""


class Demo(Lab):
    """One run."""

    def __init__(self, options, image, out):
        super().__init__(options.build, options.agent_unit, image, out)
        self.n_vms = options.vms
        self.snapshots = []

    def run(self):
        """All of it; the result as a dictionary."""
        self.out.say("libvirtd: starting one of our own, apart from the machine's")
        self.start()
        for number in range(1, self.n_vms + 1):
            self.add_guest(f"pf-demo-{number}", GUEST_MIB)
        self.out.say(f"{self.n_vms} guests of {GUEST_MIB} MiB defined, page fusion turned on in each "
                     f"(policy for huge pages: {lab_product.THP})")
        self.out.say(f"starting the guests ({self.libvirt.accel})")
        self.boot()
        self.out.say("all guests are up")
        self.fuse()
        result = self.measure()
        result.update(self.overwrite())
        return result

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
        self.pause()
        values = self.samples.take()
        host, vms = values["host"], [values[g.name] for g in self.guests]
        self.snapshots = [oracle.Snapshot(g, w) for g, w in zip(self.guests, walked)]
        kernel_kib, most_maps = oracle.kernel_shared(self.snapshots)
        result = {
            "vms": len(self.guests), "accel": self.libvirt.accel, "guest_mib": GUEST_MIB, "thp": lab_product.THP,
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
        self.resume()
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
    out.say(f"{result['vms']} guests ({result['accel']}, huge pages: {result['thp']}) "
            f"share {result['shared_kib'] / 1024:.1f} MiB in {result['frames']} frames and {result['runs']} runs; "
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
    add_options(parser)
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
