# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guests' disk images, kernels and initramfs.

Built once from the machine's own Debian archive and kept: for each recipe a root file system (raw ext4, shared
read-only by all guests as the backing file of their overlays); kernels of several releases; and for each kernel an
initramfs that loads the few modules the guests need. What changes from run to run (agent, walker, units) is not in
there: write_initrd_with_payload() packs it into a second cpio archive that the kernel unpacks over the first, and init
copies it into the guest's own root before it starts the guest's /sbin/init.
"""
import fcntl
import glob
import gzip
import hashlib
import json
import lzma
import os
import re
import shutil
import stat
import subprocess

import archive
from archive import ImageError
from cpio import cpio

# A recipe: what a root file system is made of. "kernel": it brings its own kernel and modules.
RECIPES = {
    "lab": {"kernel": True, "disk_mib": 1536, "packages":
            """systemd systemd-sysv udev dbus python3 nginx openssh-server redis-server linux-image-cloud-amd64 kmod
            busybox-static libprotobuf-c1 libelf1 libssl3 libinih1""".split()},
    "other": {"kernel": False, "disk_mib": 1536, "packages":
              """systemd systemd-sysv udev dbus python3 apache2 sqlite3 git openssh-server cron libprotobuf-c1 libelf1
              libssl3 libinih1""".split()},
    # No systemd, no udev, no package manager, no shared library.
    "busybox": {"kernel": False, "disk_mib": 64, "packages": []},
}
RELEASES = ["bullseye", "bookworm", "trixie"]  # kernels 5.10, 6.1 and 6.12
KERNEL_PACKAGE = "linux-image-cloud-amd64"
MODULES = ["virtio_pci", "virtio_blk", "ext4", "crc32c_generic"]
# A guest whose root has no modules for its kernel gets all that it will need at once.
MORE_MODULES = ["virtio_console", "virtio_balloon", "virtio_rng", "ata_piix", "sr_mod", "isofs", "fuse"]

INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /new
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
while read -r m; do /bin/busybox insmod "/modules/$m"; done < /modules/order
while ! [ -b /dev/vda ]; do /bin/busybox sleep 0.1; done
/bin/busybox mount -t ext4 /dev/vda /new
/bin/busybox cp -a /payload/. /new/
/bin/busybox umount /proc /sys /dev
exec /bin/busybox switch_root /new /sbin/init
"""

BIG_FILE = "/usr/share/lab/big"  # in the busybox guests: something to share that is no program
BIG_PAGES = 4096
BUSYBOX_FILES = {
    "etc/passwd": (0o644, "root::0:0:root:/root:/bin/sh\n"),
    "etc/group": (0o644, "root:x:0:\n"),
    "etc/inittab": (0o644, """::sysinit:/etc/init.d/rcS
::respawn:/opt/pagefusion-lab/line.sh
::ctrlaltdel:/sbin/reboot
::shutdown:/bin/umount -a -r
"""),
    "etc/init.d/rcS": (0o755, """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o mode=0755 run /run
mount -t tmpfs tmp /tmp
"""),
}

in_use = []  # descriptors with a lock on what this process uses: nobody drops that


class Image:
    """Paths of what a guest boots from."""

    def __init__(self, root_directory, kernel_directory=None):
        kernel_directory = kernel_directory or root_directory
        self.root = os.path.join(root_directory, "root.ext4")
        self.kernel = os.path.join(kernel_directory, "vmlinuz")
        self.initrd = os.path.join(kernel_directory, "initrd.base")


def _module_bytes(path):
    opener = {".xz": lzma.open, ".gz": gzip.open}.get(os.path.splitext(path)[1], open)
    if path.endswith(".zst"):
        return subprocess.run(["zstd", "-dcq", path], check=True, capture_output=True).stdout
    with opener(path, "rb") as f:
        return f.read()


def _modules(root, wanted):
    """{name: bytes} of the wanted modules and what they need, each after what it needs."""
    paths = {os.path.basename(p).split(".ko")[0].replace("-", "_"): p
             for p in glob.glob(os.path.join(root, "**/lib/modules/*/**/*.ko*"), recursive=True)}
    found = {}

    def visit(name):
        if name in found or name not in paths:  # or it is built into the kernel
            return
        data = _module_bytes(paths[name])
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for needed in depends.group(1).decode().split(",") if depends else ():
            visit(needed)
        found[name] = data

    for name in wanted:
        visit(name)
    return found


def _write_boot(root, busybox, modules, directory):
    """The kernel found below root, and an initramfs with the modules."""
    (kernel,) = glob.glob(os.path.join(root, "boot/vmlinuz-*"))
    image = Image(directory)
    shutil.copyfile(kernel, image.kernel)
    entries = {"bin/busybox": (stat.S_IFREG | 0o755, busybox), "init": (stat.S_IFREG | 0o755, INIT.encode())}
    found = _modules(root, modules)
    for name, data in found.items():
        entries[f"modules/{name}.ko"] = (stat.S_IFREG | 0o644, data)
    entries["modules/order"] = (stat.S_IFREG | 0o644, "".join(f"{name}.ko\n" for name in found).encode())
    with open(image.initrd, "wb") as f:
        f.write(cpio(entries))


def _write_root(root, mib, directory, log):
    path = Image(directory).root
    with open(path, "wb") as f:
        f.truncate(mib << 20)
    archive.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-d", root, path], log)


def _read(path):
    with open(path, "rb") as f:
        return f.read()


def _put(path, data, mode=0o644):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(data)
    os.chmod(path, mode)


def _build_debian(recipe, directory, log):
    codename = archive.codename()
    root = os.path.join(directory, "root")
    sources = os.path.join(directory, "debian.sources")
    _put(sources, archive.archive_sources(codename).encode())
    archive.run(["mmdebstrap", "--mode=root", "--variant=minbase", "--include=" + ",".join(recipe["packages"]),
                 "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
                 *archive.apt_options(), codename, root, sources], log, env={**os.environ, "INITRD": "No"})
    _put(os.path.join(root, "etc/hostname"), b"guest\n")
    # Each guest makes its own at first boot.
    _put(os.path.join(root, "etc/machine-id"), b"")
    if recipe["kernel"]:
        _write_boot(root, _read(os.path.join(root, "bin/busybox")), MODULES, directory)
    _write_root(root, recipe["disk_mib"], directory, log)
    shutil.rmtree(root)


def _suite(name, directory, log):
    return archive.Suite(archive.release_sources(archive.codename(), name), os.path.join(directory, "suite"), log)


def _busybox(suite):
    (program,) = glob.glob(os.path.join(suite.unpack("busybox-static"), "**/bin/busybox"), recursive=True)
    return _read(program)


def _build_busybox(recipe, directory, log):
    suite = _suite(archive.codename(), directory, log)
    root = os.path.join(directory, "root")
    program = os.path.join(root, "bin/busybox")
    _put(program, _busybox(suite), 0o755)
    listed = subprocess.run([program, "--list-full"], check=True, capture_output=True, text=True).stdout
    for name in listed.split():
        link = os.path.join(root, name)
        os.makedirs(os.path.dirname(link), exist_ok=True)
        if not os.path.exists(link):
            os.symlink("/bin/busybox", link)
    for name, (mode, text) in BUSYBOX_FILES.items():
        _put(os.path.join(root, name), text.encode(), mode)
    _put(root + BIG_FILE, hashlib.shake_256(b"page fusion").digest(BIG_PAGES * 4096))
    for name in ("proc", "sys", "dev", "run", "tmp", "mnt", "root", "var/log"):
        os.makedirs(os.path.join(root, name), exist_ok=True)
    _write_root(root, recipe["disk_mib"], directory, log)
    shutil.rmtree(root)
    shutil.rmtree(suite.directory)


def _build_kernel(release, directory, log):
    suite = _suite(release, directory, log)
    root = suite.unpack(suite.dependency(KERNEL_PACKAGE, r"linux-image-\d.*"))
    _write_boot(root, _busybox(suite), MODULES + MORE_MODULES, directory)
    shutil.rmtree(suite.directory)


def default_cache():
    """Where images are kept."""
    if os.geteuid() == 0:
        return "/var/cache/pagefusion"
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pagefusion")


def _name(kind, *made_of):
    key = hashlib.sha256(json.dumps([INIT, *made_of]).encode()).hexdigest()[:16]
    return f"{kind}-{key}"


def _recipe_name(name):
    codename = archive.codename()
    return _name(f"guest-{codename}-{name}", RECIPES[name], archive.archive_sources(codename), MODULES,
                 BUSYBOX_FILES, BIG_PAGES)


def _kernel_name(release):
    return _name(f"kernel-{release}", archive.release_sources(archive.codename(), release), MODULES + MORE_MODULES)


def _drop_others(cache):
    """What was made by other recipes and nobody uses now: up to half a gigabyte each."""
    kept = {_recipe_name(name) for name in RECIPES} | {_kernel_name(release) for release in RELEASES}
    for name in os.listdir(cache):
        path = os.path.join(cache, name)
        if name in kept or not name.startswith(("guest-", "kernel-")) or not os.path.isdir(path):
            continue
        fd = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(fd)


def _build(part, build, log_path):
    with open(log_path, "a", encoding="utf-8") as log:
        build(part, log)
    # QEMU runs as a user of its own and must reach these.
    for path in glob.glob(part + "/*"):
        os.chmod(path, 0o644)
    os.chmod(part, 0o755)


def _ensure(cache, name, log_path, announce, build):
    """The directory of that name: kept, or filled by build(directory, log) and renamed when it is complete."""
    os.makedirs(cache, mode=0o755, exist_ok=True)
    final = os.path.join(cache, name)
    with open(os.path.join(cache, "lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        announce(os.path.isdir(final))
        if not os.path.isdir(final):
            part = final + ".part"
            shutil.rmtree(part, ignore_errors=True)
            os.makedirs(part)
            try:
                _build(part, build, log_path)
                os.rename(part, final)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        in_use.append(os.open(final, os.O_RDONLY))
        fcntl.flock(in_use[-1], fcntl.LOCK_SH)
        _drop_others(cache)
    return final


def _ensure_root(cache, log_path, say, recipe):
    def announce(kept):
        say(f"guest image '{recipe}': " + ("kept from an earlier run" if kept else
                                           f"building from Debian {archive.codename()} (once, about a minute)"))

    def build(directory, log):
        maker = _build_debian if RECIPES[recipe]["packages"] else _build_busybox
        maker(RECIPES[recipe], directory, log)
    return _ensure(cache, _recipe_name(recipe), log_path, announce, build)


def _ensure_kernel(cache, log_path, say, release):
    def announce(kept):
        if not kept:
            say(f"guest kernel: taking the one of Debian {release} (once)")
    return _ensure(cache, _kernel_name(release), log_path, announce,
                   lambda directory, log: _build_kernel(release, directory, log))


def ensure_image(cache, log_path, say, recipe="lab", kernel=None):
    """
    What guests of that recipe boot from, with their own kernel or with that of a Debian release: from the cache, or
    built now. Safe against other runs at the same time; while this process lives nobody drops it.
    """
    root = _ensure_root(cache, log_path, say, recipe)
    return Image(root, _ensure_kernel(cache, log_path, say, kernel) if kernel else None)


def write_initrd_with_payload(image, path, files):
    """Writes image's initramfs to path with files {path in the guest: (mode, bytes)} added to the guest's root."""
    shutil.copyfile(image.initrd, path)
    with open(path, "ab") as f:
        f.write(b"\0" * (-f.tell() % 4))
        f.write(cpio({"payload/" + name.strip("/"): entry for name, entry in files.items()}))
    os.chmod(path, 0o644)
