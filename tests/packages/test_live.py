# SPDX-License-Identifier: LGPL-2.1-or-later
"""install.sh in systems that run: a process 1 of their own, which is busybox's init where init is what is to be shown.

OpenRC is Debian's, from the machine's own archive; systemd is a stand-in that writes down what it is told. Real guests
are lab tests.
"""
import argparse
import os
import shutil
import sys
import tempfile
import unittest

from openrc import add_openrc, unpack_openrc
from roots import PORT, Root, unpack_additions

OPTIONS = None
AGENT = "/opt/pagefusion-guest/sbin/pagefusion-agent"
INSTALL = "sh /media/additions/install.sh"
RESPAWN = AGENT + "-respawn"
CONFIG = "/etc/pagefusion/agent.conf"
LOG = "/var/log/pagefusion-agent.log"
# What scripts in the systems use: to wait for something, however slow the machine is, and to find agents as the kernel
# knows them.
FUNCTIONS = f"""
fail() {{ echo "FAILED: $*"; ps -o pid,ppid,args; cat {LOG}; exit 1; }}
agents() {{
	for p in /proc/[0-9]*; do
		case $(readlink $p/exe) in "{AGENT}"*) echo ${{p#/proc/}} ;; esac
	done
}}
until_() {{
	left=600
	until "$@"; do
		left=$((left - 1))
		[ $left -gt 0 ] || fail "waited for: $*"
		usleep 100000
	done
}}
runs() {{ [ -n "$(agents)" ]; }}
runs_not() {{ [ -z "$(agents)" ]; }}
runs_as_other_than() {{ runs && [ "$(agents)" != "$1" ]; }}
logged() {{ grep -q "$1" {LOG}; }}
logged_times() {{ [ "$(grep -c "$1" {LOG})" -eq "$2" ]; }}
respawner() {{ cat /run/pagefusion-agent.pid; }}
# Nothing is left, and by itself: what had to be killed leaves its file.
all_gone() {{
	runs_not && [ ! -e /run/pagefusion-agent.pid ] || return 1
	for p in /proc/[0-9]*; do
		! tr '\\0' ' ' 2>/dev/null <$p/cmdline | grep -q '^[^ ]*sh {RESPAWN} ' || return 1
	done
}}
wrong_config() {{ echo nonsense >>{CONFIG}; }}
right_config() {{ sed -i '/^nonsense$/d' {CONFIG}; }}
"""
# What the scripts of OpenRC and sysvinit both do. A signal to read the configuration again also ends a wait of what
# looks after the agent, so that nothing here takes longer than it must.
SERVICE_LIFE = f"""
service=/etc/init.d/pagefusion-agent
waits() {{ awk -v parent="$(respawner)" '$2 == "(sleep)" && $4 == parent {{ print $1 }}' /proc/[0-9]*/stat 2>/dev/null; }}
waits_otherwise() {{ [ -n "$(waits)" ] && [ "$(waits)" != "$1" ]; }}
# SIGTERM is pending for a process.
has_to_end() {{ grep -q '^ShdPnd:.*4...$' /proc/$1/status; }}

{INSTALL}
until_ runs
first=$(agents)
$service start
$service status
[ "$(agents)" = "$first" ] || fail "started twice"

echo "It reads the configuration again, and goes on with the one it has when the new one is wrong."
wrong_config
$service reload
until_ logged "{CONFIG}:.*neither"
[ "$(agents)" = "$first" ] || fail "reloading has ended it"

echo "Killed, it is started again; but not with a wrong configuration, until that has changed."
kill -9 $first
until_ waits_otherwise ""
$service reload
until_ logged "has ended with status 2"
until_ waits_otherwise ""
wait=$(waits)
$service reload
until_ waits_otherwise "$wait"
logged_times "has ended with status 2" 1 || fail "started with a wrong configuration"
right_config
$service reload
until_ runs

echo "What it says does not fill the disk."
second=$(agents)
printf '%070000d' 0 >>{LOG}
kill -9 $second
until_ [ -s {LOG}.old ]
until_ logged "has ended"
[ "$(wc -c <{LOG})" -lt 65536 ] || fail "a long log"

echo "It is replaced by an upgrade and by a restart, and gone when stop returns."
{INSTALL}
until_ runs_as_other_than "$second"
third=$(agents)
$service restart
until_ runs_as_other_than "$third"
[ "$(agents | wc -l)" = 1 ] || fail "two of them"
agent=$(agents)
kill -STOP "$agent"
{{ $service stop; : >/run/stopped; }} &
until_ has_to_end "$agent"
$service status || :
[ ! -e /run/stopped ] || fail "stop has not waited"
kill -CONT "$agent"
wait $!
rm /run/stopped
all_gone || fail "stop has left something"
if $service status; then fail "status of nothing"; fi
if $service reload; then fail "reload of nothing"; fi
$service start
until_ runs
/opt/pagefusion-guest/uninstall
all_gone || fail "it still runs"
"""


class Live(unittest.TestCase):
    """One system each."""

    def setUp(self):
        self.scratch = tempfile.mkdtemp(prefix="pf-live-")
        self.addCleanup(shutil.rmtree, self.scratch)

    def system(self, kind):
        """A system with the additions beside it, and what is in it before they are installed."""
        root = Root(os.path.join(self.scratch, "root"), kind)
        additions = unpack_additions(OPTIONS.dist, os.path.join(self.scratch, "additions"))
        os.rename(additions, root.path("/media/additions"))
        return root, root.files()

    def run_script(self, root, script, **options):
        """Process 1 is a shell. What it wrote."""
        root.write("/script", "set -eu\n" + FUNCTIONS + script)
        done = root.run_live("sh", "/script", **options)
        os.unlink(root.path("/script"))
        self.assertEqual(done.returncode, 0, done.stdout)
        return done.stdout

    def run_init(self, root, script, shutdown="poweroff -f"):
        """Process 1 is init, which runs the script; what that wrote."""
        root.write("/script", "exec >/output 2>&1 </dev/null\ntrap 'echo status $?; " + shutdown + "' EXIT\nset -eu\n" +
                   FUNCTIONS + script)
        root.write("/etc/inittab", "::once:/bin/sh /script\n")
        before = root.files()
        done = root.run_live("/sbin/init")
        output = root.read("/output")
        self.assertIn("status 0\n", output, done.stdout)
        os.unlink(root.path("/output"))
        return output, before

    def test_systemd(self):
        """udev learns the rule, systemd the unit, and with the port there it is started."""
        root, before = self.system("systemd")
        os.makedirs(root.path("/run/systemd/system"))
        told = ["systemctl daemon-reload", "udevadm control --reload",
                "udevadm trigger --action=add --subsystem-match=virtio-ports"]
        said = self.run_script(root, INSTALL)
        self.assertIn("when the host turns page fusion on", said)
        self.assertEqual(root.calls(), told)
        root.write(PORT, "")
        self.assertIn("Started", self.run_script(root, INSTALL))
        self.assertEqual(root.calls(), [*told, "systemctl restart pagefusion-agent.service"])
        self.run_script(root, "/opt/pagefusion-guest/uninstall")
        self.assertEqual(root.calls(), ["systemctl stop pagefusion-agent.service", *told,
                                        "systemctl reset-failed pagefusion-agent.service"])
        left = {path for path in set(root.files()) - set(before) if not path.startswith(("/run", "/dev"))}
        self.assertEqual(left, set())

    def test_systemd_cannot_start_it(self):
        """It says so, and is installed all the same."""
        root, _ = self.system("systemd")
        os.makedirs(root.path("/run/systemd/system"))
        root.write(PORT, "")
        root.write("/usr/bin/systemctl", "#!/bin/sh\n[ $1 != restart ]\n", 0o755)
        said = self.run_script(root, INSTALL + " && exit 3; [ $? = 1 ]\n/opt/pagefusion-guest/uninstall")
        self.assertIn("installed, but it could not be started", said)
        self.assertIn("Removed", said)

    def test_inittab(self):
        """Started by init, and again when it is killed; after an upgrade the new one runs; removed, none does."""
        root, _ = self.system("inittab")
        output, before = self.run_init(root, f"""
			{INSTALL}
			until_ runs
			first=$(agents)
			kill -9 $first
			until_ runs_as_other_than "$first"
			second=$(agents)
			before=$(respawner)
			{INSTALL}
			until_ runs_as_other_than "$second"
			[ "$(respawner)" != "$before" ] || fail "the old one looks after it"
			until_ logged "starting {AGENT}"
			/opt/pagefusion-guest/uninstall
			all_gone || fail "it still runs"
			""")
        self.assertIn("Upgrading", output)
        self.assertEqual(root.files(), before)

    def test_sysvinit(self):
        root, _ = self.system("sysvinit")
        output, before = self.run_init(root, SERVICE_LIFE)
        self.assertIn("pagefusion-agent runs\n", output)
        self.assertEqual(root.files(), before)

    def test_openrc(self):
        root, _ = self.system("openrc")
        add_openrc(root, unpack_openrc(self.scratch))
        before = root.files()
        output = self.run_script(root, "openrc default\n" + SERVICE_LIFE)
        self.assertIn("status: started", output)
        left = set(root.files()) - set(before)
        self.assertEqual({path for path in left if not path.startswith(("/run", "/var/run"))}, set())

    def test_old_kernel(self):
        """Where it would run, it is refused."""
        root, before = self.system("inittab")
        said = self.run_script(root, INSTALL + " && exit 3; [ $? = 1 ]",
                               personality=["setarch", "x86_64", "--uname-2.6"])
        self.assertRegex(said, r"this kernel is Linux 2\.6\.\d+.*; the agent needs 4\.19 or later")
        self.assertEqual(root.files(), before)


def main():
    """The command."""
    global OPTIONS
    parser = argparse.ArgumentParser()
    parser.add_argument("--dist", required=True)
    OPTIONS, rest = parser.parse_known_args()
    sys.exit(0 if unittest.main(argv=sys.argv[:1] + rest, exit=False).result.wasSuccessful() else 1)


if __name__ == "__main__":
    main()
