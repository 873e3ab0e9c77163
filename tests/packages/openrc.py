# SPDX-License-Identifier: LGPL-2.1-or-later
"""OpenRC, from the packages of the machine's own Debian archive, for roots to install in. It is not installed here."""
import os
import re
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../lab"))
import archive  # noqa: E402 pylint: disable=wrong-import-position

PROGRAMS = "sbin/openrc sbin/openrc-run sbin/rc-service sbin/rc-update sbin/supervise-daemon bin/rc-status".split()
LOCALMOUNT = "#!/sbin/openrc-run\nstart() { :; }\n"


def unpack_openrc(directory):
    """Its packages; returns the directories of what is in them, the programs' first."""
    with open(os.path.join(directory, "apt.log"), "w+", encoding="utf-8") as log:
        try:
            suite = archive.Suite(archive.archive_sources(archive.codename()), os.path.join(directory, "apt"), log)
            libraries = [suite.dependency("openrc", "lib" + name + r"\d.*") for name in ("rc", "einfo")]
            return [suite.unpack(package) for package in ("openrc", *libraries)]
        except archive.ImageError as error:
            log.seek(0)
            raise RuntimeError(f"{error}\n{log.read()}") from error


def _machine_libraries(trees):
    """The paths of the shared libraries that the programs need besides their own."""
    own = ":".join(path for tree in trees for path, _, names in os.walk(tree) if any(".so" in name for name in names))
    said = subprocess.run(["ldd", *(os.path.join(trees[0], name) for name in PROGRAMS)], check=True,
                          stdout=subprocess.PIPE, text=True, env={**os.environ, "LD_LIBRARY_PATH": own}).stdout
    return {path for path in re.findall(r"(/\S+) \(0x", said) if not path.startswith(tuple(trees))}


def add_openrc(root, trees):
    """Puts it into a root, in place of what looks like it."""
    for path in ("/sbin/openrc-run", "/usr/bin/rc-service", "/usr/bin/rc-update"):
        os.unlink(root.path(path))
    for tree in trees:
        shutil.copytree(tree, root.directory, symlinks=True, dirs_exist_ok=True)
    for path in _machine_libraries(trees):
        os.makedirs(os.path.dirname(root.path(path)), exist_ok=True)
        shutil.copy(path, root.path(path))
    root.write("/etc/init.d/localmount", LOCALMOUNT, 0o755)
    root.write("/etc/insserv.conf", "")
    root.write("/run/openrc/softlevel", "default\n")
    os.makedirs(root.path("/var"), exist_ok=True)
    os.symlink("/run", root.path("/var/run"))
