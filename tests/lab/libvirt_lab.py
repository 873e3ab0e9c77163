# SPDX-License-Identifier: LGPL-2.1-or-later
"""A libvirtd of the lab's own, next to whatever the machine runs.

The lab gives itself new mount, network and process namespaces. In them libvirt's directories are empty ones of this
run, so the machine's domains and networks are neither seen nor touched, several runs at a time do not meet, and all
that a run started ends with it, also when it is killed.
"""
import ctypes
import os
import re
import shutil
import signal
import stat
import subprocess
import time

CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG = 1
URI = "qemu:///system"
LIBVIRT_DIRS = ["/etc/libvirt", "/run/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt"]
DEVICES = ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "userfaultfd"]
QEMU_CONF = """stdio_handler = "file"
security_driver = "none"
cgroup_controllers = [ ]
"""
DBUS_CONF = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
libc = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """Something of the lab did not work; the message says what."""


def _mount_proc():
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", "/run"], check=True)


def _wait_for(pid):
    """Exit status of pid, which gets every signal that asks us to end."""
    def forward(signum, _frame):
        os.kill(pid, signum)
    for signum in SIGNALS:
        signal.signal(signum, forward)
    while True:
        try:
            ended, status = os.wait()
        except InterruptedError:
            continue
        if ended == pid:
            return os.waitstatus_to_exitcode(status)


def _exit_as(status):
    os._exit(status if status >= 0 else 128 - status)


def die_with_parent(signum=signal.SIGTERM):
    """A test runner that is killed does not leave its test behind."""
    libc.prctl(PR_SET_PDEATHSIG, signum)


def enter_namespaces():
    """
    Returns in a grandchild that lives in namespaces of its own; the caller's process waits for it and exits with its
    status. Between them stands the namespace's first process: it only reaps what loses its parent (a QEMU that
    libvirtd made a daemon would otherwise stay a zombie and be taken for alive).
    """
    if libc.unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET) != 0:
        raise LabError("unshare: " + os.strerror(ctypes.get_errno()) + " (the lab needs root)")
    child = os.fork()
    if child:
        _exit_as(_wait_for(child))
    die_with_parent(signal.SIGKILL)
    _mount_proc()
    grandchild = os.fork()
    if grandchild:
        _exit_as(_wait_for(grandchild))
    die_with_parent(signal.SIGKILL)


def wait_until(condition, seconds, what):
    """Polls condition until it is true; its value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not after {seconds} s")
        time.sleep(0.1)


class Setting:
    """A file of /proc/sys that has another value for a while."""

    def __init__(self, path, value):
        self.path = path
        self.value = value
        self.before = None

    def __enter__(self):
        with open(self.path, encoding="ascii") as f:
            self.before = f.read()
        self._write(self.value)

    def __exit__(self, *_):
        self._write(self.before)

    def _write(self, value):
        with open(self.path, "w", encoding="ascii") as f:
            f.write(value)


def ended(process):
    """Whether a process of ours has ended."""
    return process.poll() is not None


def spawn(argv, log_path, env=None):
    """Starts a program with its output in log_path."""
    with open(log_path, "ab") as log:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)


def stop(process, seconds=10):
    """Ends a process of ours."""
    if ended(process):
        return
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def accelerator():
    """"kvm" where the processor itself virtualizes; a KVM without that does not boot a stock kernel."""
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        flags = next((line.split() for line in f if line.startswith("flags")), [])
    return "kvm" if ("vmx" in flags or "svm" in flags) and os.access("/dev/kvm", os.R_OK | os.W_OK) else "tcg"


class Libvirt:
    """dbus-daemon and libvirtd in the namespaces that enter_namespaces() made."""

    def __init__(self, directory):
        self.directory = directory
        self.processes = []
        self.accel = accelerator()

    def start(self):
        """Returns when both answer."""
        self._private_directories()
        if self.accel != "kvm":
            self._hide_kvm()
        self._start_bus()
        self._start_libvirtd()

    def _hide_kvm(self):
        # Where QEMU's probe, but not its user, can open /dev/kvm, libvirt probes QEMU anew for every domain: seconds.
        # So: a /dev without it. The old one goes, because libvirt stumbles over hidden mounts.
        dev = os.path.join(self.directory, "dev")
        os.mkdir(dev)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", dev], check=True)
        for name in DEVICES:
            info = os.stat("/dev/" + name)
            os.mknod(os.path.join(dev, name), info.st_mode, info.st_rdev)
            os.chmod(os.path.join(dev, name), stat.S_IMODE(info.st_mode))
        for name in ("pts", "shm"):
            os.mkdir(os.path.join(dev, name))
            subprocess.run(["mount", "--rbind", "/dev/" + name, os.path.join(dev, name)], check=True)
        os.symlink("/proc/self/fd", os.path.join(dev, "fd"))
        subprocess.run(["umount", "--recursive", "--lazy", "/dev"], check=True)
        subprocess.run(["mount", "--move", dev, "/dev"], check=True)

    def _private_directories(self):
        base = os.path.join(self.directory, "libvirt")
        os.makedirs(base)
        for path in LIBVIRT_DIRS:
            if not os.path.isdir(path):
                os.makedirs(path)
            own = os.path.join(base, path.strip("/").replace("/", "-"))
            os.mkdir(own, 0o755)
            if path == "/etc/libvirt":
                self._copy_settings(path, own)
            subprocess.run(["mount", "--bind", own, path], check=True)
        os.makedirs("/var/lib/libvirt/qemu", exist_ok=True)
        shutil.chown("/var/lib/libvirt/qemu", "libvirt-qemu")

    @staticmethod
    def _copy_settings(source, own):
        # Not the machine's domains and networks; qemu.conf is the distribution's, with what the lab needs behind it.
        for name in os.listdir(source):
            if os.path.isfile(os.path.join(source, name)):
                shutil.copy(os.path.join(source, name), own)
        path = os.path.join(own, "qemu.conf")
        settings = ""
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                settings = f.read()
        keys = "|".join(re.findall(r"^(\w+) =", QEMU_CONF, re.M))
        settings = re.sub(rf"^({keys})\b", r"#\1", settings, flags=re.M)
        with open(path, "w", encoding="utf-8") as f:
            f.write(settings + "\n" + QEMU_CONF)

    def _start_bus(self):
        socket = os.path.join(self.directory, "bus.socket")
        config = os.path.join(self.directory, "bus.conf")
        with open(config, "w", encoding="utf-8") as f:
            f.write(DBUS_CONF.format(socket=socket))
        os.environ["DBUS_SYSTEM_BUS_ADDRESS"] = "unix:path=" + socket
        log = os.path.join(self.directory, "dbus.log")
        bus = spawn(["dbus-daemon", "--config-file=" + config, "--nofork", "--nopidfile"], log)
        self.processes.append(bus)
        wait_until(lambda: os.path.exists(socket) or ended(bus), 10, "dbus-daemon")
        if ended(bus):
            raise LabError("dbus-daemon ended: see " + log)

    def _start_libvirtd(self):
        log = os.path.join(self.directory, "libvirtd.log")
        libvirtd = spawn([shutil.which("libvirtd", path="/usr/sbin:/usr/bin:/sbin") or "libvirtd"], log)
        self.processes.append(libvirtd)

        def answers():
            if ended(libvirtd):
                raise LabError("libvirtd ended: see " + log)
            return self._virsh("version").returncode == 0
        wait_until(answers, 60, "libvirtd")

    @staticmethod
    def _virsh(*args):
        return subprocess.run(["virsh", "-q", "-c", URI, *args], stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, check=False)

    def virsh(self, *args):
        """Output of a virsh command."""
        done = self._virsh(*args)
        if done.returncode != 0:
            raise LabError(f"virsh {args[0]}: {done.stderr.strip()}")
        return done.stdout

    def stop(self):
        """Ends what start() started, the last first."""
        for process in reversed(self.processes):
            stop(process)
