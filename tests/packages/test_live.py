# SPDX-License-Identifier: LGPL-2.1-or-later
"""install.sh in systems that run: a process 1 of their own, which is busybox's init where init is what is to be shown.

systemd and OpenRC are stand-ins that write down what they are told. Real guests are lab tests.
"""
import argparse
import os
import shutil
import sys
import tempfile
import unittest

from roots import PORT, Root, unpack_additions

OPTIONS = None
AGENT = "/opt/pagefusion-guest/sbin/pagefusion-agent"
INSTALL = "sh /media/additions/install.sh"
# What scripts in the systems use: to wait for something, and to find agents as the kernel knows them.
FUNCTIONS = f"""
fail() {{ echo "FAILED: $*"; exit 1; }}
agents() {{
	for p in /proc/[0-9]*; do
		case $(readlink $p/exe) in "{AGENT}"*) echo ${{p#/proc/}} ;; esac
	done
}}
# until SECONDS COMMAND...
until_() {{
	left=$(($1 * 10)); shift
	until "$@"; do
		left=$((left - 1))
		[ $left -gt 0 ] || fail "waited for: $*"
		usleep 100000
	done
}}
runs() {{ [ -n "$(agents)" ]; }}
runs_not() {{ [ -z "$(agents)" ]; }}
runs_as_other_than() {{ runs && [ "$(agents)" != "$1" ]; }}
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

    def test_openrc(self):
        root, before = self.system("openrc")
        root.write("/run/openrc/softlevel", "default\n")
        self.run_script(root, INSTALL)
        self.assertEqual(root.calls(), ["rc-service pagefusion-agent restart"])
        self.run_script(root, INSTALL + " --uninstall")
        self.assertEqual(root.calls(), ["rc-service pagefusion-agent stop"])
        self.assertEqual({path for path in set(root.files()) - set(before) if not path.startswith("/run")}, set())

    def test_inittab(self):
        """Started by init, and again when it is killed; after an upgrade the new one runs; removed, none does."""
        root, _ = self.system("inittab")
        output, before = self.run_init(root, f"""
			{INSTALL}
			until_ 20 runs
			first=$(agents)
			kill -9 $first
			until_ 30 runs_as_other_than "$first"
			second=$(agents)
			{INSTALL}
			until_ 20 runs_as_other_than "$second"
			grep -q "starting {AGENT}" /var/log/pagefusion-agent.log || fail "no log"
			/opt/pagefusion-guest/uninstall
			runs_not || fail "it still runs"
			""")
        self.assertIn("Upgrading", output)
        self.assertEqual(root.files(), before)

    def test_sysvinit(self):
        """The script starts it once, stops all of it, and starts it again when it is killed."""
        root, _ = self.system("sysvinit")
        output, before = self.run_init(root, f"""
			{INSTALL}
			until_ 20 runs
			first=$(agents)
			/etc/init.d/pagefusion-agent start
			/etc/init.d/pagefusion-agent status
			[ "$(agents)" = "$first" ] || fail "started twice"
			kill -9 $first
			until_ 30 runs_as_other_than "$first"
			second=$(agents)
			{INSTALL}
			until_ 20 runs_as_other_than "$second"
			/etc/init.d/pagefusion-agent stop
			until_ 10 runs_not
			if /etc/init.d/pagefusion-agent status; then fail "status of nothing"; fi
			/etc/init.d/pagefusion-agent start
			until_ 20 runs
			/opt/pagefusion-guest/uninstall
			runs_not || fail "it still runs"
			""")
        self.assertIn("pagefusion-agent runs\n", output)
        self.assertEqual(root.files(), before)

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
