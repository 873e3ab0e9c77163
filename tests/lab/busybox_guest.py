# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest with neither systemd nor udev: busybox is its init, its shell and the lab's end of the line.

What the walker is elsewhere is a loop of the shell here. It reads a command line, runs it, and answers with one JSON
object: {"status": N, "output": base64}.
"""
import base64
import re

import oracle
from guest import LAB_DIRECTORY, WALKER_PORT, Guest, copy, text
from libvirt_lab import wait_until

LINE = f"""#!/bin/sh
# There is no udev that would give the port its name.
for port in /sys/class/virtio-ports/*; do
	[ "$(cat "$port/name")" = {WALKER_PORT} ] && device=/dev/${{port##*/}}
done
exec 3<>"$device"
echo '{{"ready": true}}' >&3
while :; do
	if IFS= read -r command <&3; then
		(eval "$command") </dev/null >/tmp/lab.output 2>&1 3>&-
		status=$?
		{{
			printf '{{"status": %d, "output": "' "$status"
			base64 -w 0 /tmp/lab.output
			echo '"}}'
		}} >&3
	else
		sleep 0.2 # nobody at the host's end
	fi
done
"""
PAGE = 4096


def payload(holder):
    """Files for write_initrd_with_payload(): the shell's loop, and the program that maps files."""
    return {LAB_DIRECTORY + "line.sh": text(LINE, 0o755), LAB_DIRECTORY + "lab-holder": copy(holder, 0o755)}


class BusyboxGuest(Guest):
    """Speaks with the shell's loop."""

    def run(self, command, seconds=60):
        self.line.settimeout(seconds)
        self.line.sendall(command.replace("\n", "; ").encode() + b"\n")
        self.line.setblocking(False)
        reply = wait_until(self.poll_line, seconds, f"{self.name}: the answer to {command}")
        return reply["status"], base64.b64decode(reply["output"]).decode(errors="backslashreplace")

    def snapshot(self):
        """Where its RAM is, without what is in it."""
        found = re.findall(r"^ *([0-9a-f]+)-([0-9a-f]+) : System RAM$", self.must("cat /proc/iomem"), re.M)
        ram = [(int(a, 16) // PAGE, (int(b, 16) + 1 - int(a, 16)) // PAGE) for a, b in found]
        return oracle.Snapshot(self, {"ram": ram, "files": []})
