# SPDX-License-Identifier: LGPL-2.1-or-later
"""One guest: its definition, its disk, and the line to the walker inside."""
import base64
import json
import os
import re
import socket
import stat
import subprocess
import time
import xml.etree.ElementTree as ET
import zlib

from libvirt_lab import LabError, wait_until

HERE = os.path.dirname(os.path.abspath(__file__))
UNITS = "etc/systemd/system/"
LAB_DIRECTORY = "opt/pagefusion-lab/"
WALKER_PORT = "org.pagefusion.lab.0"
# A real file of the system that nothing in the guest needs: the walker maps it, the demo overwrites a page of it.
SPARE_FILE = "/usr/lib/python3*/lib-dynload/_codecs_jp.*.so"

DOMAIN = """<domain type='{type}'>
  <name>{name}</name>
  <memory unit='MiB'>{mib}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>console=ttyS0 systemd.show_status=1</cmdline>
  </os>
  <features><acpi/></features>
  {cpu}
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='writeback'/>
      <source file='{disk}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <controller type='usb' model='none'/>
    <serial type='file'><source path='{console}'/></serial>
    <channel type='unix'><target type='virtio' name='{port}'/></channel>
    <memballoon model='virtio'/>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
  </devices>
</domain>
"""

CPUS = {
    "kvm": "<cpu mode='host-passthrough'/>",
    # QEMU 7.2 now and then leaves rubbish in the flags when it emulates cmpxchg16b, which kills Linux 6.12.
    "tcg": "<cpu mode='custom'><model>qemu64</model><feature policy='disable' name='cx16'/></cpu>",
}

LAB_UNIT = f"""[Unit]
Description=Lab walker
After=nginx.service redis-server.service ssh.service
[Service]
Type=notify
ExecStart=/usr/bin/python3 -B /opt/pagefusion-lab/walker.py /dev/virtio-ports/{WALKER_PORT} {SPARE_FILE}
[Install]
WantedBy=multi-user.target
"""
# Everything that will run is there at the first scan, so that the time to fuse it is not the time to boot.
AGENT_ORDER = "[Unit]\nAfter=pagefusion-lab.service\n"


def text(content, mode=0o644):
    """A file for write_initrd_with_payload()."""
    return (stat.S_IFREG | mode, content.encode())


def copy(path, mode=0o644):
    """The same, from one of the host's."""
    with open(path, "rb") as f:
        return (stat.S_IFREG | mode, f.read())


def walker_payload():
    """Files for write_initrd_with_payload(): the walker."""
    return {
        LAB_DIRECTORY + "walker.py": copy(os.path.join(HERE, "walker.py")),
        LAB_DIRECTORY + "guest_files.py": copy(os.path.join(HERE, "guest_files.py")),
        UNITS + "pagefusion-lab.service": text(LAB_UNIT),
        UNITS + "multi-user.target.wants/pagefusion-lab.service": (stat.S_IFLNK | 0o777, b"../pagefusion-lab.service"),
    }


def payload(agent, packaged_unit):
    """Files for write_initrd_with_payload(): the agent with its unit and udev's rule for it, and the walker."""
    rule = "90-pagefusion-agent.rules"
    packaging = os.path.dirname(os.path.dirname(os.path.abspath(packaged_unit)))
    return {
        "usr/sbin/pagefusion-agent": copy(agent, 0o755),
        UNITS + "pagefusion-agent.service": copy(packaged_unit),
        UNITS + "pagefusion-agent.service.d/lab.conf": text(AGENT_ORDER),
        "etc/udev/rules.d/" + rule: copy(os.path.join(packaging, "udev", rule)),
        **walker_payload(),
    }


class Guest:
    """A domain of the lab's libvirt; close() takes it away again."""

    def __init__(self, libvirt, name, directory, mib):
        self.libvirt = libvirt
        self.name = name
        self.directory = os.path.join(directory, name)
        self.console = os.path.join(self.directory, "console.log")
        self.mib = mib
        self.line = None
        self.buffer = b""
        self.defined = False

    def define(self, image, initrd, accel, edit=None):
        """An overlay on the image's root, and the domain, shut off. edit(guest, domain) may change the definition."""
        os.makedirs(self.directory, mode=0o755)
        disk = os.path.join(self.directory, "disk.qcow2")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", image.root, disk], check=True)
        with open(self.console, "wb"):
            pass
        definition = DOMAIN.format(
            type="kvm" if accel == "kvm" else "qemu", name=self.name, mib=self.mib, kernel=image.kernel,
            initrd=initrd, disk=disk, console=self.console, port=WALKER_PORT, cpu=CPUS[accel])
        domain = ET.fromstring(definition)
        if edit:
            edit(self, domain)
        self.libvirt.virsh("define", self.write_xml("domain", domain))
        self.defined = True

    def write_xml(self, name, element):
        """Path of a file for virsh."""
        path = os.path.join(self.directory, name + ".xml")
        ET.ElementTree(element).write(path, encoding="unicode")
        return path

    def add_disk(self, domain, target, driver, path):
        """A raw disk in the definition."""
        disk = ET.SubElement(domain.find("devices"), "disk", type="file", device="disk")
        ET.SubElement(disk, "driver", {"name": "qemu", "type": "raw", **driver})
        ET.SubElement(disk, "source", file=path)
        ET.SubElement(disk, "target", dev=target, bus="virtio")

    @staticmethod
    def add_cdrom(domain, path):
        """A CD in the definition."""
        disk = ET.SubElement(domain.find("devices"), "disk", type="file", device="cdrom")
        ET.SubElement(disk, "driver", name="qemu", type="raw")
        ET.SubElement(disk, "source", file=path)
        ET.SubElement(disk, "target", dev="hda", bus="ide")
        ET.SubElement(disk, "readonly")

    def start(self):
        """Starts it, or goes on where it was saved, and connects to the walker's port."""
        self.libvirt.virsh("start", self.name)
        if self.line:
            self.line.close()
        self.buffer = b""
        live = ET.fromstring(self.libvirt.virsh("dumpxml", self.name))
        path = next(c.find("source").get("path") for c in live.iter("channel")
                    if c.find("target").get("name") == WALKER_PORT)
        self.line = socket.socket(socket.AF_UNIX)
        self.line.connect(path)
        self.line.setblocking(False)

    def console_tail(self, lines=15):
        """The end of what the guest said on its console."""
        with open(self.console, encoding="utf-8", errors="replace") as f:
            return "\n".join(f"  {self.name}| {line}" for line in f.read().splitlines()[-lines:])

    def has_panicked(self):
        """Whether the kernel said so."""
        with open(self.console, "rb") as f:
            return b"Kernel panic - not syncing" in f.read()

    def running(self):
        """Whether its QEMU is there."""
        return self.libvirt.virsh("domstate", self.name).strip() in ("running", "paused")

    def poll_line(self):
        """The next line from the walker, or None."""
        try:
            data = self.line.recv(1 << 16)
            if not data:
                raise LabError(f"{self.name}: its QEMU has ended")
            self.buffer += data
        except BlockingIOError:
            pass
        if b"\n" not in self.buffer:
            return None
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def tell(self, what, seconds=60, **arguments):
        """Sends the walker a request, whose answer is still to be heard."""
        request = (json.dumps({"do": what, **arguments}) + "\n").encode()
        self.line.settimeout(seconds)
        self.line.sendall(request)
        self.line.setblocking(False)

    def hear(self, what, seconds=60):
        """The walker's answer."""
        reply = wait_until(self.poll_line, seconds, f"{self.name}: the walker's answer to {what}")
        reply = json.loads(zlib.decompress(base64.b64decode(reply["z"])))
        if "error" in reply:
            raise LabError(f"{self.name}: {what}: {reply['error']}")
        return reply

    def ask(self, what, seconds=60, **arguments):
        """Request and answer."""
        self.tell(what, seconds, **arguments)
        return self.hear(what, seconds)

    def run(self, command, seconds=60):
        """(status, output) of a shell's command line in the guest."""
        reply = self.ask("run", seconds, command=command)
        return reply["status"], reply["output"]

    def must(self, command, seconds=60):
        """Output of a command line that has to succeed."""
        status, output = self.run(command, seconds)
        if status != 0:
            raise LabError(f"{self.name}: {command}: status {status}: {output.strip()}")
        return output

    def hold(self, *arguments, seconds=60):
        """Runs lab-holder with these arguments; its process id there, once it holds what it is to hold."""
        out = f"/tmp/lab-holder.{time.monotonic_ns()}"
        self.must(f"/{LAB_DIRECTORY}lab-holder {' '.join(arguments)} >{out} 2>&1 </dev/null &"
                  f" while kill -0 $! 2>/dev/null && ! [ -s {out} ]; do sleep 0.1; done;"
                  f" grep -E '^[0-9]+$' {out}", seconds)
        return int(self.must(f"cat {out}; rm {out}"))

    def pid(self):
        """Of its QEMU."""
        with open(f"/run/libvirt/qemu/{self.name}.pid", encoding="ascii") as f:
            return int(f.read())

    def qmp(self, command, **arguments):
        """What QEMU's monitor returns."""
        request = json.dumps({"execute": command, "arguments": arguments})
        reply = json.loads(self.libvirt.virsh("qemu-monitor-command", self.name, request))
        if "error" in reply:
            raise LabError(f"{self.name}: {command}: {reply['error']['desc']}")
        return reply["return"]

    def balloon_mib(self):
        """What the balloon leaves to the guest."""
        text = self.libvirt.virsh("dommemstat", self.name)
        return int(re.search(r"^actual (\d+)$", text, re.M).group(1)) // 1024

    def plugged_mib(self):
        """What virtio-mem has given to the guest."""
        live = ET.fromstring(self.libvirt.virsh("dumpxml", self.name))
        return int(live.find("devices/memory/target/current").text) // 1024

    def reset_peak(self):
        """peak_kib() counts from now on."""
        with open(f"/proc/{self.pid()}/clear_refs", "w", encoding="ascii") as f:
            f.write("5")

    def peak_kib(self):
        """The most that was resident."""
        return self._status_kib("VmHWM")

    def resident_kib(self):
        """What is resident."""
        return self._status_kib("VmRSS")

    def _status_kib(self, field):
        with open(f"/proc/{self.pid()}/status", encoding="utf-8") as f:
            return int(re.search(rf"^{field}:\s+(\d+) kB$", f.read(), re.M).group(1))

    def hva(self, gfn):
        """Host virtual address of a guest page, from QEMU's monitor."""
        text = self.libvirt.virsh("qemu-monitor-command", self.name, "--hmp", f"gpa2hva {gfn << 12:#x}")
        if " is 0x" not in text:
            raise LabError(f"{self.name}: gpa2hva: {text.strip()}")
        return int(text.split(" is ")[1].split()[0], 16)

    def close(self):
        """Destroys and undefines the domain."""
        if self.line:
            self.line.close()
        if not self.defined:
            return
        try:
            if self.running():
                self.libvirt.virsh("destroy", self.name)
            self.libvirt.virsh("undefine", self.name)
        except LabError:
            pass  # libvirtd is gone too: the process namespace takes the rest with it
        self.defined = False


def ask_all(guests, what, seconds=240, **arguments):
    """The walkers' answers, in the guests' order; they work at the same time."""
    for guest in guests:
        guest.tell(what, seconds, **arguments)
    return [guest.hear(what, seconds) for guest in guests]


def wait_ready(guests, seconds, progress):
    """Returns when every guest's walker said that it is ready."""
    waiting = list(guests)
    started = time.monotonic()
    while waiting:
        for guest in list(waiting):
            line = guest.poll_line()
            if line and line.get("ready"):
                waiting.remove(guest)
        elapsed = time.monotonic() - started
        progress(guests, waiting, elapsed)
        for guest in waiting:
            if guest.has_panicked():
                raise LabError(f"{guest.name}: its kernel has panicked")
        if elapsed > seconds:
            raise LabError(f"{', '.join(g.name for g in waiting)}: not ready after {seconds} s")
        time.sleep(0.2)
