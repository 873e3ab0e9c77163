# SPDX-License-Identifier: LGPL-2.1-or-later
"""One guest: its definition, its disk, and the line to the walker inside."""
import base64
import json
import os
import socket
import stat
import subprocess
import time
import xml.etree.ElementTree as ET
import zlib

from libvirt_lab import LabError, wait_until

HERE = os.path.dirname(os.path.abspath(__file__))
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

LAB_UNIT = f"""[Unit]
Description=Lab walker
After=nginx.service redis-server.service ssh.service
[Service]
Type=notify
ExecStart=/usr/bin/python3 -B /opt/pagefusion-lab/walker.py /dev/virtio-ports/{WALKER_PORT} {SPARE_FILE}
[Install]
WantedBy=multi-user.target
"""
AGENT_UNIT = """[Unit]
Description=Page fusion agent
[Service]
ExecStart=/usr/sbin/pagefusion-agent
ExecReload=/bin/kill -HUP $MAINPID
Restart=always
RestartSec=1
[Install]
WantedBy=multi-user.target
"""
# Everything that will run is there at the first scan, so that the time to fuse it is not the time to boot.
AGENT_ORDER = "[Unit]\nAfter=pagefusion-lab.service\n"


def payload(agent, packaged_unit):
    """Files for write_initrd_with_payload(): the agent and its unit, and the walker."""
    def text(content, mode=0o644):
        return (stat.S_IFREG | mode, content.encode())

    def copy(path, mode):
        with open(path, "rb") as f:
            return (stat.S_IFREG | mode, f.read())

    units = "etc/systemd/system/"
    wants = units + "multi-user.target.wants/"
    unit = copy(packaged_unit, 0o644) if os.path.exists(packaged_unit) else text(AGENT_UNIT)
    return {
        "usr/sbin/pagefusion-agent": copy(agent, 0o755),
        units + "pagefusion-agent.service": unit,
        units + "pagefusion-agent.service.d/lab.conf": text(AGENT_ORDER),
        wants + "pagefusion-agent.service": (stat.S_IFLNK | 0o777, b"../pagefusion-agent.service"),
        "opt/pagefusion-lab/walker.py": copy(os.path.join(HERE, "walker.py"), 0o644),
        units + "pagefusion-lab.service": text(LAB_UNIT),
        wants + "pagefusion-lab.service": (stat.S_IFLNK | 0o777, b"../pagefusion-lab.service"),
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

    def define(self, image, initrd, accel):
        """An overlay on the image's root, and the domain, shut off."""
        os.makedirs(self.directory, mode=0o755)
        disk = os.path.join(self.directory, "disk.qcow2")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", image.root, disk], check=True)
        with open(self.console, "wb"):
            pass
        definition = DOMAIN.format(
            type="kvm" if accel == "kvm" else "qemu", name=self.name, mib=self.mib, kernel=image.kernel,
            initrd=initrd, disk=disk, console=self.console, port=WALKER_PORT,
            cpu="<cpu mode='host-passthrough'/>" if accel == "kvm" else "")
        path = os.path.join(self.directory, "domain.xml")
        with open(path, "w", encoding="utf-8") as f:
            f.write(definition)
        self.libvirt.virsh("define", path)
        self.defined = True

    def start(self):
        """Starts it and connects to the walker's port."""
        self.libvirt.virsh("start", self.name)
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

    def ask(self, what, seconds=60, **arguments):
        """The walker's answer."""
        request = (json.dumps({"do": what, **arguments}) + "\n").encode()
        self.line.settimeout(seconds)
        self.line.sendall(request)
        self.line.setblocking(False)
        reply = wait_until(self.poll_line, seconds, f"{self.name}: the walker's answer to {what}")
        reply = json.loads(zlib.decompress(base64.b64decode(reply["z"])))
        if "error" in reply:
            raise LabError(f"{self.name}: {what}: {reply['error']}")
        return reply

    def pid(self):
        """Of its QEMU."""
        with open(f"/run/libvirt/qemu/{self.name}.pid", encoding="ascii") as f:
            return int(f.read())

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
        if elapsed > seconds:
            raise LabError(f"{', '.join(g.name for g in waiting)}: not ready after {seconds} s")
        time.sleep(0.2)
