# SPDX-License-Identifier: LGPL-2.1-or-later
"""The programs under test: pagefusiond as a process of ours, and pagefusionctl as a user runs it."""
import json
import os
import pwd
import shutil
import subprocess
import time

from libvirt_lab import LabError, ended, spawn, stop, wait_until

SHARED, REVOKED = "RAM/VMM/Shared", "RAM/VMM/Revoked"
FRAMES, HINT_TO_FUSED = "RAM/VMM/Frames", "RAM/VMM/HintToFused"
VM_SHARED, VM_HINTED = "Guest/RAM/Usage/Shared", "Guest/PageFusion/Hinted"
VM_RUNS, VM_REVOKED = "Guest/PageFusion/Runs", "Guest/PageFusion/Revoked"
VM_FUSED = "Guest/PageFusion/Fused"

THP = "all"  # breaks every huge page that has a page to fuse, so that the figures mean all that can be shared


USER, USER_ID = "pagefusion", 64321


def give_user(directory):
    """A machine without the service's user gets one, in the lab's own mounts."""
    try:
        pwd.getpwnam(USER)
        return
    except KeyError:
        pass
    lines = {"passwd": f"{USER}:x:{USER_ID}:{USER_ID}::/nonexistent:/usr/sbin/nologin\n",
             "group": f"{USER}:x:{USER_ID}:\n"}
    for name, line in lines.items():
        copy = shutil.copy(os.path.join("/etc", name), directory)
        with open(copy, "a", encoding="utf-8") as f:
            f.write(line)
        subprocess.run(["mount", "--bind", copy, os.path.join("/etc", name)], check=True)


class Product:
    """Built programs below a build directory, run on the lab's bus and libvirt."""

    def __init__(self, build):
        self.service_path = os.path.join(build, "host-service/pagefusiond")
        self.ctl_path = os.path.join(build, "host-service/ctl/pagefusionctl")
        self.shim_path = os.path.join(build, "host-service/shim/libpagefusion-vmm.so")
        self.agent_path = os.path.join(build, "guest-agent/pagefusion-agent")
        self.log = None
        self.service = None
        self.command = None
        for path in (self.service_path, self.ctl_path, self.shim_path, self.agent_path):
            if not os.path.exists(path):
                raise LabError(f"{path} is not built")

    def start(self, directory, shim_path, *options):
        """Starts the service; returns when it answers. shim_path must be readable for QEMU's user."""
        self.log = os.path.join(directory, "pagefusiond.log")
        run_dir = os.path.join(directory, "pagefusion")
        os.makedirs(run_dir, mode=0o755)
        give_user(directory)
        # The machine may have a configuration: not for us.
        config = os.path.join(directory, "pagefusiond.conf")
        with open(config, "w", encoding="utf-8"):
            pass
        self.command = [self.service_path, "--config", config, "--run-dir", run_dir, "--shim", shim_path,
                        "--thp", THP, *options]
        self.start_again()

    def start_again(self):
        """Starts the service after it has ended; returns when it answers."""
        self.service = spawn(self.command, self.log)

        def answers():
            if ended(self.service):
                raise LabError(f"pagefusiond ended with status {self.service.returncode}:\n{self.log_tail()}")
            return self.ctl("list", "vms").returncode == 0
        wait_until(answers, 20, "pagefusiond")

    def log_tail(self, lines=15):
        """The end of the service's log."""
        with open(self.log, encoding="utf-8", errors="replace") as f:
            return "\n".join("  pagefusiond| " + line for line in f.read().splitlines()[-lines:])

    def ctl(self, *args):
        """A finished pagefusionctl."""
        return subprocess.run([self.ctl_path, *args], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              check=False, timeout=60)

    def enable(self, name, value="on"):
        """Turns page fusion on, or off, for a VM."""
        done = self.ctl("modifyvm", name, "--pagefusion", value)
        if done.returncode != 0:
            raise LabError(f"pagefusionctl modifyvm: {done.stderr.strip()}")

    def metrics(self):
        """{object: {metric: value}} of the host and all VMs."""
        done = self.ctl("metrics", "query", "--json")
        if done.returncode != 0:
            raise LabError(f"pagefusionctl metrics query: {done.stderr.strip()}")
        values = {"host": {}}
        for row in json.loads(done.stdout):
            values.setdefault(row["object"], {})[row["metric"]] = row["value"]
        return values

    def stop(self):
        """Ends the service."""
        if self.service:
            stop(self.service)


class Samples:
    """Metrics over time, and what is derived from their course."""

    def __init__(self, product, names):
        self.product = product
        self.names = names
        self.second_hint = None  # when two VMs had hinted something
        self.course = []         # (time, shared KiB)
        self.changed = time.monotonic()
        self.last = None

    def take(self):
        """The metrics now."""
        values = self.product.metrics()
        now = time.monotonic()
        hinted = [values.get(name, {}).get(VM_HINTED, 0) for name in self.names]
        if self.second_hint is None and sum(h > 0 for h in hinted) >= min(2, len(self.names)):
            self.second_hint = now
        shared = values["host"].get(SHARED, 0)
        self.course.append((now, shared))
        if (shared, hinted) != self.last:
            self.last = (shared, hinted)
            self.changed = now
        return values

    def forget(self):
        """What was taken so far does not count for stable()."""
        self.last = None

    def stable(self, seconds):
        """Whether all VMs hinted and nothing has changed for so long."""
        return bool(self.last) and all(h > 0 for h in self.last[1]) and time.monotonic() - self.changed >= seconds

    def seconds_to(self, fraction):
        """From the second VM's first hint until the given part of the last value was reached; None: never hinted."""
        if self.second_hint is None:
            return None
        final = self.course[-1][1]
        reached = next(at for at, shared in self.course if shared >= final * fraction)
        return round(max(reached - self.second_hint, 0.0), 2)
