# SPDX-License-Identifier: LGPL-2.1-or-later
"""The agent as a process of the bench, and what it costs as the kernel counts it."""
import glob
import json
import os
import re
import signal
import socket
import subprocess

import machine
from machine import BenchError, read_text

STATUS_SOCKET = "/run/pagefusion-agent/status"
# Nothing holds the agent back; what is to be measured is what it does.
EAGER = """[agent]
interval = {interval}
slow-interval = 10
hash-limit = 1024G
cpu-limit = 100
[classes]
mapped = on
cache = {cache}
buffers = off
kernel = off
[cache]
paths = {paths}
"""


def eager(interval, cache_path=None):
    """A configuration."""
    return EAGER.format(interval=interval, cache="on" if cache_path else "off", paths=cache_path or "/usr")


class Agent:
    """One that runs, with a stand-in at its port. config "" is what a user gets who changes nothing."""

    def __init__(self, binary, stand_in, directory, config):
        self.stand_in = stand_in
        self.log = os.path.join(directory, "agent.log")
        path = os.path.join(directory, "agent.conf")
        with open(path, "w", encoding="utf-8") as f:
            f.write(config)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([binary, "--config", path, "--port", stand_in.path], stdout=log, stderr=log,
                                            stdin=subprocess.DEVNULL, preexec_fn=machine.die_with_parent)
        self.pid = self.process.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _alive(self):
        if self.process.poll() is not None:
            raise BenchError(f"the agent ended with status {self.process.returncode}:\n{read_text(self.log)[-2000:]}")

    def status(self):
        """What it says of itself."""
        self._alive()
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(10)
            line.connect(STATUS_SOCKET)
            text = b""
            while data := line.recv(65536):
                text += data
        return json.loads(text.split(b"\0")[0])

    def passes(self):
        """{class: passes made} of those that it looks for."""
        return {name: c["passes"] for name, c in self.status()["classes"].items() if c["on"] and not c["impossible"]}

    def wait_passes(self, before, seconds=300, watch=None):
        """Until each class had a pass after those of before; watch() is called now and then."""
        waited, ends = 0.0, self.stand_in.look(lambda report: report.ends)
        while True:
            # A report ends behind each pass: no need to ask the agent, which costs it something, before.
            if self.stand_in.wait(lambda report, n=ends: report.ends > n, 0.1) or waited % 2 < 0.1:
                ends = self.stand_in.look(lambda report: report.ends)
                if ends and all(n > before.get(name, 0) for name, n in self.passes().items()):
                    return
            if watch:
                watch()
            self._alive()
            waited += 0.1
            if waited > seconds:
                raise BenchError(f"the agent made no complete report in {seconds} s:\n{read_text(self.log)[-2000:]}")

    def rescan(self):
        """A complete pass of each class; the CPU time of it in ns."""
        before, spent = self.passes(), self.cpu_ns()
        self.process.send_signal(signal.SIGHUP)
        self.wait_passes(before)
        return self.cpu_ns() - spent

    def cpu_ns(self):
        """All in all."""
        return machine.cpu_ns(self.pid)

    def memory_kib(self):
        """(anonymous, of files), resident."""
        text = read_text(f"/proc/{self.pid}/status")
        return tuple(int(re.search(rf"^{field}:\s+(\d+) kB$", text, re.M).group(1)) for field in ("RssAnon", "RssFile"))

    def wakeups(self):
        """How often it has gone to sleep, and so was woken: all threads that live."""
        return sum(int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)$", read_text(path), re.M).group(1))
                   for path in glob.glob(f"/proc/{self.pid}/task/*/status"))

    def read_bytes(self):
        """What was read from disks for it."""
        return int(re.search(r"^read_bytes: (\d+)$", read_text(f"/proc/{self.pid}/io"), re.M).group(1))
