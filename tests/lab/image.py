# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guests' disk image, kernel and initramfs.

Built once from the machine's own Debian archive and kept: a root file system (raw ext4, shared read-only by all guests
as the backing file of their overlays), the kernel, and an initramfs that loads the few modules the root disk needs.
What changes from run to run (agent, walker, units) is not in there: payload() packs it into a second cpio archive
that the kernel unpacks over the first, and init copies it into the guest's own root before it starts systemd.
"""
import fcntl
import glob
import gzip
import hashlib
import lzma
import os
import re
import shutil
import stat
import subprocess

PACKAGES = """systemd systemd-sysv udev dbus python3 nginx openssh-server redis-server linux-image-cloud-amd64 kmod
    busybox-static libprotobuf-c1 libelf1 libssl3""".split()
DISK_MIB = 1536
MODULES = ["virtio_pci", "virtio_blk", "ext4", "crc32c_generic"]
KEYRING = "debian-archive-"

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


class ImageError(Exception):
    """The image could not be built; the message says what and what to do."""


class Image:
    """Paths of a finished image."""

    def __init__(self, directory):
        self.root = os.path.join(directory, "root.ext4")
        self.kernel = os.path.join(directory, "vmlinuz")
        self.initrd = os.path.join(directory, "initrd.base")

    def complete(self):
        """Whether every part is there."""
        return all(os.path.exists(p) for p in (self.root, self.kernel, self.initrd))


def _os_release():
    with open("/etc/os-release", encoding="utf-8") as f:
        return dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', f.read(), re.M))


def _wanted(suite, codename, components, signed_by):
    """Whether a source is the distribution's own."""
    own = {codename, codename + "-updates", codename + "-security"}
    return suite in own and "main" in components and (not signed_by or KEYRING in signed_by)


def _stanzas(text):
    """The deb822 stanzas of a .sources file as dicts with lower-case keys."""
    for block in re.split(r"\n\s*\n", re.sub(r"^#.*\n", "", text, flags=re.M)):
        fields = re.findall(r"^([\w-]+):[ \t]*(.*(?:\n[ \t].*)*)", block, re.M)
        if fields:
            yield {key.lower(): " ".join(value.split()) for key, value in fields}


def _one_line_sources(text):
    """The 'deb' lines of a .list file in the same shape."""
    for options, uri, suite, components in re.findall(
            r"^deb\s+(?:\[(.*?)\]\s+)?(\S+)\s+(\S+)\s+(.*?)\s*(?:#.*)?$", text, re.M):
        signed = re.search(r"signed-by=(\S+)", options)
        yield {"types": "deb", "uris": uri, "suites": suite, "components": components,
               "signed-by": signed.group(1) if signed else ""}


def archive_sources(codename, etc_apt="/etc/apt"):
    """This machine's sources for the distribution's own suites, in deb822 format; third parties' are left out."""
    found = []
    for path in sorted(glob.glob(etc_apt + "/sources.list.d/*.sources")):
        with open(path, encoding="utf-8") as f:
            found += _stanzas(f.read())
    for path in [etc_apt + "/sources.list"] + sorted(glob.glob(etc_apt + "/sources.list.d/*.list")):
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                found += _one_line_sources(f.read())
    text = ""
    for source in found:
        signed_by = source.get("signed-by", "")
        suites = [s for s in source.get("suites", "").split()
                  if _wanted(s, codename, source.get("components", ""), signed_by)]
        if "deb" not in source.get("types", "").split() or not suites \
                or source.get("enabled", "yes").lower() in ("no", "false"):
            continue
        text += f"Types: deb\nURIs: {source['uris']}\nSuites: {' '.join(suites)}\nComponents: main\n"
        text += f"Signed-By: {signed_by}\n\n" if signed_by else "\n"
    if not text:
        raise ImageError(f"no apt source for {codename} main in {etc_apt}: the guest image is made from it")
    return text


def _apt_options():
    """How this machine reaches its archive (proxies, snapshot settings), as options of mmdebstrap."""
    dump = subprocess.run(["apt-config", "dump"], check=True, capture_output=True, text=True).stdout
    wanted = r"^(Acquire::(?:https?::.*|Check-Valid-Until|Check-Date|Retries) \".*\";)$"
    return [f"--aptopt={line}" for line in re.findall(wanted, dump, re.M) if not line.endswith('"";')]


def _module_order(modules_dir):
    """Paths below modules_dir of MODULES and what they need, each after its dependencies."""
    with open(os.path.join(modules_dir, "modules.dep"), encoding="utf-8") as f:
        deps = {line.split(":")[0]: line.split(":")[1].split() for line in f}
    by_name = {os.path.basename(p).split(".ko")[0].replace("-", "_"): p for p in deps}
    order = []

    def visit(path):
        for dep in deps[path]:
            visit(dep)
        if path not in order:
            order.append(path)

    for name in MODULES:
        if name in by_name:  # else it is built into the kernel
            visit(by_name[name])
    return order


def _module_bytes(path):
    opener = {".xz": lzma.open, ".gz": gzip.open}.get(os.path.splitext(path)[1], open)
    if path.endswith(".zst"):
        return subprocess.run(["zstd", "-dcq", path], check=True, capture_output=True).stdout
    with opener(path, "rb") as f:
        return f.read()


def cpio(entries):
    """A newc archive of {path: (mode, bytes)}; missing parents are added as directories."""
    full = {}
    for path, entry in entries.items():
        parts = path.strip("/").split("/")
        for i in range(1, len(parts)):
            full.setdefault("/".join(parts[:i]), (stat.S_IFDIR | 0o755, b""))
        full["/".join(parts)] = entry
    out = bytearray()
    for ino, (path, (mode, data)) in enumerate([*full.items(), ("TRAILER!!!", (0, b""))], 1):
        name = path.encode() + b"\0"
        fields = (ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % v for v in fields) + name
        out += b"\0" * (-len(out) % 4) + data
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


def _write_initrd(root, kernel_version, path):
    modules_dir = os.path.join(root, "lib/modules", kernel_version)
    with open(os.path.join(root, "bin/busybox"), "rb") as f:
        busybox = f.read()
    entries = {"bin/busybox": (stat.S_IFREG | 0o755, busybox), "init": (stat.S_IFREG | 0o755, INIT.encode())}
    names = []
    for module in _module_order(modules_dir):
        name = os.path.basename(module).split(".ko")[0] + ".ko"
        names.append(name)
        entries["modules/" + name] = (stat.S_IFREG | 0o644, _module_bytes(os.path.join(modules_dir, module)))
    entries["modules/order"] = (stat.S_IFREG | 0o644, ("\n".join(names) + "\n").encode())
    with open(path, "wb") as f:
        f.write(cpio(entries))


def _run(argv, log, **kwargs):
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, check=False, **kwargs)
    if done.returncode != 0:
        raise ImageError(f"{argv[0]} failed with status {done.returncode}: see {log.name}")


def _build(directory, codename, sources, log):
    """Fills directory (which is renamed when it is complete)."""
    root = os.path.join(directory, "root")
    sources_file = os.path.join(directory, "debian.sources")
    with open(sources_file, "w", encoding="utf-8") as f:
        f.write(sources)
    _run(["mmdebstrap", "--mode=root", "--variant=minbase", "--include=" + ",".join(PACKAGES),
          "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
          *_apt_options(), codename, root, sources_file], log, env={**os.environ, "INITRD": "No"})
    with open(os.path.join(root, "etc/hostname"), "w", encoding="utf-8") as f:
        f.write("guest\n")
    # Each guest makes its own at first boot.
    with open(os.path.join(root, "etc/machine-id"), "w", encoding="utf-8"):
        pass
    kernel = glob.glob(os.path.join(root, "boot/vmlinuz-*"))[0]
    image = Image(directory)
    _write_initrd(root, os.path.basename(kernel)[len("vmlinuz-"):], image.initrd)
    shutil.copyfile(kernel, image.kernel)
    with open(image.root, "wb") as f:
        f.truncate(DISK_MIB << 20)
    _run(["mkfs.ext4", "-q", "-F", "-m", "0", "-d", root, image.root], log)
    shutil.rmtree(root)
    # QEMU runs as a user of its own and must reach these.
    for path in (image.root, image.kernel, image.initrd):
        os.chmod(path, 0o644)
    os.chmod(directory, 0o755)


def default_cache():
    """Where images are kept."""
    if os.geteuid() == 0:
        return "/var/cache/pagefusion"
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pagefusion")


def _drop_others(cache, kept):
    """Images made by another recipe: half a gigabyte each, and nobody asks for them any more."""
    for name in os.listdir(cache):
        path = os.path.join(cache, name)
        if name.startswith("guest-") and path != kept and os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)


def ensure_image(cache, log_path, say):
    """The image of this recipe: from the cache, or built now. Safe against other runs at the same time."""
    release = _os_release()
    if release.get("ID") != "debian":
        raise ImageError("the guest image is made from Debian's packages with Debian's apt: this is "
                         + release.get("PRETTY_NAME", "another distribution"))
    codename = release["VERSION_CODENAME"]
    sources = archive_sources(codename)
    with open(__file__, "rb") as f:
        key = hashlib.sha256(f.read() + sources.encode()).hexdigest()[:16]
    os.makedirs(cache, mode=0o755, exist_ok=True)
    final = os.path.join(cache, f"guest-{codename}-{key}")
    with open(os.path.join(cache, "lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if Image(final).complete():
            say("guest image: kept from an earlier run")
            return Image(final)
        say(f"guest image: building from Debian {codename} (once, about a minute)")
        part = final + ".part"
        shutil.rmtree(part, ignore_errors=True)
        os.makedirs(part)
        try:
            with open(log_path, "w", encoding="utf-8") as log:
                _build(part, codename, sources, log)
            os.rename(part, final)
            _drop_others(cache, final)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return Image(final)


def write_initrd_with_payload(image, path, files):
    """Writes image's initramfs to path with files {path in the guest: (mode, bytes)} added to the guest's root."""
    shutil.copyfile(image.initrd, path)
    with open(path, "ab") as f:
        f.write(b"\0" * (-f.tell() % 4))
        f.write(cpio({"payload/" + name.strip("/"): entry for name, entry in files.items()}))
    os.chmod(path, 0o644)
