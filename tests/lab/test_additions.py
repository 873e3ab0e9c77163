# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest additions in two unlike Debian guests with systemd: other packages, another kernel.

One gets them from the ISO with install.sh, the other from the .deb with apt. Nothing else is done to them: udev and
systemd do the rest. The tests run in the order of their names, in one boot, and the first that fails is the last.
"""
import json
import os
import re
import subprocess
import sys
import time
import unittest

import additions
import archive
import guest as lab_guest
import image as lab_image
import oracle
from guest import LAB_DIRECTORY, Guest, ask_all, copy
from lab import run_tests
from libvirt_lab import LabError, stop, wait_until
from product import VM_FUSED, VM_HINTED

GUEST_MIB = 512
EVENT_SECONDS = 120
START_SECONDS = 5  # from the start of a program until it is fused
# Runs in no guest by itself, and waits for an answer that does not come.
PROGRAM = "/usr/bin/ssh"
COMMAND = PROGRAM + " -F none -o ProxyCommand='sleep 100000' nobody@localhost"
# Files that nothing maps: each is for one event.
PROBES = "/usr/lib/x86_64-linux-gnu/gconv/*.so"
PROBE_PAGES = 20
MAPPINGS = 100000
UNIT = "pagefusion-agent.service"
# CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_NET_ADMIN, CAP_SYS_RAWIO, CAP_SYS_PTRACE, CAP_SYS_ADMIN
CAPABILITIES = sum(1 << bit for bit in (2, 3, 12, 17, 19, 21))
PACKAGE = "pagefusion-guest"
# What apt and dpkg keep of anything that ever was installed, and what else changes in a system that runs.
DEBIAN_CHANGING = """/var/cache /var/lib/dpkg/status /var/lib/dpkg/status-old /var/lib/dpkg/available
    /var/lib/dpkg/available-old /var/lib/dpkg/lock /var/lib/dpkg/lock-frontend /var/lib/dpkg/triggers /var/lib/apt
    /var/lib/systemd/timers /var/lib/systemd/random-seed /var/lib/redis /etc/machine-id""".split()
IMAGES, LAB = None, None


class Additions(unittest.TestCase):
    """Each test leaves the guests for the next."""

    @classmethod
    def setUpClass(cls):
        LAB.out.say("starting libvirtd, pagefusiond and two guests")
        LAB.start()
        files = {
            **lab_guest.walker_payload(),
            LAB_DIRECTORY + "lab-holder": copy(LAB.holder, 0o755),
            LAB_DIRECTORY + "hanging_fuse.py": copy(os.path.join(lab_guest.HERE, "hanging_fuse.py")),
            LAB_DIRECTORY + "newer.deb": copy(newer_package()),
        }
        for name, image in IMAGES.items():
            guest = Guest(LAB.libvirt, "pf-" + name, LAB.directory, GUEST_MIB)
            LAB.add_guest_with(guest, image, files, LAB.insert_cd)
        cls.iso, cls.deb = LAB.guests
        LAB.boot()
        for guest in LAB.guests:
            guest.must("systemctl is-system-running --wait || true", 240)
        cls.files = [additions.file_list(guest, DEBIAN_CHANGING) for guest in LAB.guests]
        ask_all(LAB.guests, "drop")
        cls.probes = cls.unused_files(cls)

    def unused_files(self):
        """Paths of probes that both guests have and nothing maps."""
        lists = [re.findall(r"^\S+$", guest.must(f"find {PROBES} -size +{PROBE_PAGES * 4 + 20}k"), re.M)
                 for guest in LAB.guests]
        return sorted(set(lists[0]) & set(lists[1]))

    # ---- what is asked and counted

    def show(self, guest):
        """The unit's properties."""
        return dict(line.split("=", 1) for line in guest.must(f"systemctl show {UNIT}").splitlines() if "=" in line)

    def status(self, guest):
        """What the agent says of itself."""
        return json.loads(guest.must("pagefusion-agent --status --json"))

    def complaints(self, guest):
        """What was said of the service since boot, by itself or by systemd, that is a warning or worse."""
        return guest.must(f"journalctl -q -b -u {UNIT} -p warning -o cat").splitlines()

    def warnings(self, guest):
        """What the agent itself said since boot that is a warning or worse."""
        return guest.must(f"journalctl -q -b _SYSTEMD_UNIT={UNIT} -p warning -o cat").splitlines()

    def said(self, guest):
        """All that the agent itself said since boot."""
        return guest.must(f"journalctl -q -b _SYSTEMD_UNIT={UNIT} -o cat").splitlines()

    def wait_active(self, guest, but=None):
        """The agent's process id once its service is active."""
        def active():
            unit = self.show(guest)
            return unit["ActiveState"] == "active" and int(unit["MainPID"]) not in (0, but) and int(unit["MainPID"])
        return wait_until(active, EVENT_SECONDS, f"{guest.name}: {UNIT} to be active")

    def wait_hinted(self, pages):
        """Returns when both agents have reported so many pages."""
        wait_until(lambda: all(LAB.samples.take().get(guest.name, {}).get(VM_HINTED, 0) >= pages
                               for guest in LAB.guests), EVENT_SECONDS, f"{pages} pages to be hinted by each")

    def in_common(self, *paths):
        """(pages that both guests have of these files, how many of them are one page on the host)"""
        looked = ask_all(LAB.guests, "pages", files=list(paths))
        found = oracle.in_common(*(oracle.Snapshot(guest, reply) for guest, reply in zip(LAB.guests, looked)))
        return tuple(sum(counts) for counts in zip((0, 0), *found.values()))

    def fuse_probe(self, what, *busy):
        """
        After an event: both guests map a file that they have not mapped before; it is fused. Agents that have so much
        to do that they put off what is new are told not to.
        """
        path = self.probes.pop()
        started = time.monotonic()
        for guest in LAB.guests:
            guest.hold("files", path)
        for guest in busy:
            self.look_again(guest)

        def fused():
            pages, shared = self.in_common(path)
            return pages >= PROBE_PAGES and shared >= pages * 0.95
        wait_until(fused, EVENT_SECONDS, f"{path} to be fused after: {what}")
        LAB.out.say(f"{what}: a new file is fused {time.monotonic() - started:.1f} s after it was mapped")

    # ---- the events

    def test_01_install(self):
        additions.mount_cd(self.iso)
        said = self.iso.must("/mnt/install.sh", 120)
        self.iso.must("umount /mnt")
        self.assertIn("Started", said)
        additions.mount_cd(self.deb)
        self.deb.must(f"DEBIAN_FRONTEND=noninteractive apt-get install -y /mnt/{PACKAGE}_*.deb", 240)
        self.deb.must("umount /mnt")
        for guest in LAB.guests:
            self.wait_active(guest)
        self.wait_hinted(1000)
        LAB.out.say("installed from the ISO and from the .deb; udev has started both agents")

    def test_02_hardened(self):
        for guest, directory in zip(LAB.guests, ("/etc/systemd/system/", "/lib/systemd/system/")):
            unit = self.show(guest)
            self.assertEqual(unit["FragmentPath"].replace("/usr/lib/", "/lib/"), directory + UNIT)
            self.assertEqual((unit.get("DropInPaths", ""), unit["NRestarts"], unit["Result"]), ("", "0", "success"))
            self.assertIn("virtio", unit["BindsTo"])
            status = guest.must(f"cat /proc/{unit['MainPID']}/status")
            fields = dict(re.findall(r"^(\w+):\t(.*)$", status, re.M))
            for name in ("CapEff", "CapBnd"):
                self.assertEqual(int(fields[name], 16), CAPABILITIES, name)
            self.assertEqual((fields["NoNewPrivs"], fields["Seccomp"]), ("1", "2"))
            self.assertEqual(self.complaints(guest), [], guest.name)
            self.assertEqual(guest.must("systemctl --failed --plain --no-legend").strip(), "", guest.name)

    def test_03_status(self):
        for guest in LAB.guests:
            told = self.status(guest)
            self.assertEqual((told["connected"], told["process_events"], told["left_behind"]), (True, True, 0), told)
            for name in ("mapped", "cache"):
                self.assertTrue(told["classes"][name]["on"])
                self.assertIsNone(told["classes"][name]["impossible"])
            self.assertGreater(told["classes"]["mapped"]["pages"], 1000)
            self.assertIn("listens", guest.must("pagefusion-agent --status"))
            guest.must("pagefusion-agent --check")

    def test_04_new_program(self):
        wait_until(lambda: LAB.samples.take() and LAB.samples.stable(3), EVENT_SECONDS, "all to be fused that is")
        self.assertEqual(self.in_common(PROGRAM)[0], 0, PROGRAM + " ran before")
        before = LAB.samples.take()
        started = time.monotonic()
        for guest in LAB.guests:
            guest.must(f"setsid {COMMAND} >/dev/null 2>&1 &")
        course = []
        while time.monotonic() < started + START_SECONDS:
            values = LAB.samples.take()
            course.append((time.monotonic() - started, min(values[guest.name][VM_FUSED] - before[guest.name][VM_FUSED]
                                                           for guest in LAB.guests)))
            time.sleep(0.05)
        pages, shared = self.in_common(PROGRAM)
        reached = next((at for at, fused in course if fused >= pages * 0.9), None)
        LAB.out.say(f"a new program: {shared} of {pages} pages fused, {reached} s after its start")
        self.assertGreaterEqual(pages, 100)
        self.assertGreaterEqual(shared, pages * 0.9)
        self.assertIsNotNone(reached, course)

    def test_05_heterogeneous(self):
        for guest in LAB.guests:
            self.look_again(guest)
        wait_until(lambda: LAB.samples.take() and LAB.samples.stable(5), EVENT_SECONDS, "nothing to change any more")
        walked = [guest.ask("walk") for guest in LAB.guests]
        LAB.pause()
        try:
            snapshots = [oracle.Snapshot(guest, reply) for guest, reply in zip(LAB.guests, walked)]
            found = oracle.in_common(*snapshots)
        finally:
            LAB.resume()
        pages, shared = (sum(counts) for counts in zip(*found.values()))
        kernels = {guest.must("uname -r") for guest in LAB.guests}
        LAB.out.say(f"two unlike guests have {len(found)} mapped files in common: {shared} of {pages} pages that are "
                    f"the same bytes are one page on the host ({shared / pages:.1%})")
        self.assertEqual(len(kernels), 2)
        self.assertGreater(len(found), 20)
        self.assertGreaterEqual(shared, pages * 0.9, sorted(found.items(), key=lambda f: f[1][1] - f[1][0])[:10])

    def test_06_killed_agent(self):
        for guest in LAB.guests:
            pid = self.wait_active(guest)
            guest.must(f"kill -9 {pid}")
            self.wait_active(guest, pid)
        self.fuse_probe("agents killed")

    def test_07_service_restart(self):
        LAB.product.stop()
        LAB.product.start_again()
        self.wait_hinted(1000)
        self.fuse_probe("pagefusiond restarted")

    def test_08_suspend(self):
        LAB.pause()
        time.sleep(3)
        LAB.resume()
        self.fuse_probe("suspended and resumed")

    def test_09_managed_save(self):
        pid = self.wait_active(self.iso)
        LAB.libvirt.virsh("managedsave", self.iso.name)
        self.iso.start()
        self.wait_hinted(1000)
        self.assertEqual(self.wait_active(self.iso), pid)
        self.fuse_probe("saved and restored")

    def restart(self, guest, value):
        """Shuts the guest down, sets the flag, starts it."""
        guest.tell("run", command="systemctl poweroff")
        wait_until(lambda: not guest.running(), EVENT_SECONDS, f"{guest.name} to shut down")
        LAB.product.enable(guest.name, value)
        guest.start()
        LAB.wait_booted([guest])

    def test_10_flag(self):
        self.restart(self.deb, "off")
        unit = self.show(self.deb)
        self.assertEqual((unit["ActiveState"], unit["Result"]), ("inactive", "success"))
        self.assertEqual(self.complaints(self.deb), [])
        self.assertIsNone(additions.agent_pid(self.deb))
        self.restart(self.deb, "on")
        self.wait_active(self.deb)
        self.wait_hinted(1000)
        self.fuse_probe("the flag off and on again")

    def test_11_trouble(self):
        guest = self.iso
        pid, before = self.wait_active(guest), self.status(guest)
        self.assertEqual(self.warnings(guest), [])
        guest.must("mkdir -p /srv/lab && cd /srv/lab && cp /usr/lib/x86_64-linux-gnu/libcrypto.so.3 whole"
                   " && head -c 1000000 whole >half.so"
                   " && { head -c 64 whole; head -c 200000 /dev/urandom; } >rubbish.so"
                   " && cp whole cut.so && cp whole \"$(printf 'new\\nline \\377')\"")
        holders = [guest.hold("files", "/srv/lab/half.so", "/srv/lab/rubbish.so", "/srv/lab/new*"),
                   guest.hold("cut", "/srv/lab/cut.so")]
        guest.must("sysctl -q vm.max_map_count=200000")
        holders.append(guest.hold("pieces", str(MAPPINGS), "/srv/lab/whole", seconds=EVENT_SECONDS))
        self.fuse_probe(f"half-written ELF files and {MAPPINGS} mappings", guest)
        self.assertEqual(self.warnings(guest), [])
        holders += self.hang_fuse(guest)
        self.fuse_probe("a file system that hangs", guest)
        for _ in range(2):
            self.look_again(guest)
        # It is not even asked, so nothing hangs; which is said once.
        self.assertEqual(self.warnings(guest), [])
        said = [line for line in self.said(guest) if "is left alone" in line]
        self.assertEqual(len(said), 1, said)
        self.assertEqual(self.wait_active(guest), pid)
        after = self.status(guest)
        LAB.out.say(f"the agent said once what it leaves alone; it holds {after['rss_anon_kib']} KiB for "
                    f"{sum(kind['pages'] for kind in after['classes'].values())} pages, and has used "
                    f"{(after['cpu_us'] - before['cpu_us']) / 1e6:.1f} s of CPU for all that")
        self.assertLess(after["rss_anon_kib"], 8192)
        guest.must(f"kill -9 {' '.join(map(str, holders))}; umount -l /srv/lab/fuse; rm -r /srv/lab")
        self.fuse_probe("the trouble's end", guest)

    @staticmethod
    def hang_fuse(guest):
        """A program has a file of a FUSE file system mapped, whose server does not answer any more; both are killed."""
        guest.must(f"mkdir /srv/lab/fuse; setsid python3 -B /{LAB_DIRECTORY}hanging_fuse.py /srv/lab/fuse"
                   " >/run/lab-fuse 2>&1 </dev/null & echo $! >/run/lab-fuse.pid;"
                   " until mountpoint -q /srv/lab/fuse; do sleep 0.1; done")
        holder = guest.hold("files", "/srv/lab/fuse/file")
        server = int(guest.must("cat /run/lab-fuse.pid"))
        guest.must(f"kill -STOP {server}")
        return [holder, server]

    def look_again(self, guest):
        """Has the agent look at everything; returns when it has."""
        passes = self.status(guest)["classes"]["mapped"]["passes"]
        guest.must(f"systemctl reload {UNIT}")
        wait_until(lambda: self.status(guest)["classes"]["mapped"]["passes"] > passes, EVENT_SECONDS,
                   f"{guest.name}'s agent to look again")

    def test_12_upgrade(self):
        before = [self.wait_active(guest) for guest in LAB.guests]
        additions.mount_cd(self.iso)
        self.assertIn("Upgrading", self.iso.must("/mnt/install.sh", 120))
        self.iso.must("umount /mnt")
        self.deb.must("echo '# mine' >>/etc/pagefusion/agent.conf")
        self.deb.must(f"DEBIAN_FRONTEND=noninteractive apt-get install -y /{LAB_DIRECTORY}newer.deb", 240)
        self.assertIn("lab", self.deb.must(f"dpkg-query -W {PACKAGE}"))
        self.assertIn("# mine", self.deb.must("tail -n 1 /etc/pagefusion/agent.conf"))
        for guest, pid in zip(LAB.guests, before):
            self.wait_active(guest, pid)
            self.assertNotIn("deleted", guest.must(f"readlink /proc/{additions.agent_pid(guest)}/exe"))
        self.fuse_probe("upgraded")

    def test_13_remove(self):
        self.iso.must("/opt/pagefusion-guest/uninstall", 120)
        self.deb.must(f"apt-get remove -y {PACKAGE}", 240)
        self.assertEqual(self.deb.must("ls /etc/pagefusion").split(), ["agent.conf"])
        self.deb.must(f"apt-get purge -y {PACKAGE}", 240)
        for guest, before in zip(LAB.guests, self.files):
            self.assertIsNone(additions.agent_pid(guest))
            self.assertEqual(self.show(guest)["LoadState"], "not-found")
            after = additions.file_list(guest, DEBIAN_CHANGING)
            self.assertEqual(additions.differences(before, after), [], guest.name)
        self.assertNotIn(PACKAGE, self.deb.must("cat /var/lib/dpkg/status"))
        LAB.out.say("removed: nothing is left behind")


def newer_package():
    """The .deb once more, with a higher version."""
    tree = os.path.join(LAB.directory, "newer")
    newer = tree + ".deb"
    subprocess.run(["dpkg-deb", "-R", LAB.package(PACKAGE + "_*.deb"), tree], check=True)
    control = os.path.join(tree, "DEBIAN/control")
    with open(control, encoding="utf-8") as f:
        text = f.read()
    with open(control, "w", encoding="utf-8") as f:
        f.write(re.sub(r"^(Version: .*)$", r"\1+lab1", text, flags=re.M))
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, newer], check=True, stdout=subprocess.DEVNULL)
    return newer


def prepare(options, say):
    """Boot images of two kinds of guests."""
    other = next(release for release in reversed(lab_image.RELEASES) if release != archive.codename())
    return {"iso": lab_image.ensure_image(options.cache, options.image_log, say),
            "deb": lab_image.ensure_image(options.cache, options.image_log, say, "other", other)}


def make(options, images, out):
    """The lab of these tests."""
    global LAB, IMAGES
    IMAGES = images
    LAB = additions.AdditionsLab(options, None, out)
    return LAB


if __name__ == "__main__":
    sys.exit(run_tests(prepare, make, additions.add_options))
