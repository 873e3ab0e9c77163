# SPDX-License-Identifier: LGPL-2.1-or-later
"""The machine's own Debian archive, which guests are made from: its sources, and single packages out of it."""
import glob
import os
import re
import subprocess

KEYRING = "debian-archive-"
ALL_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"  # also those of older and newer releases


class ImageError(Exception):
    """Something that guests are made from could not be had; the message says what and what to do."""


def os_release():
    """What the machine runs."""
    with open("/etc/os-release", encoding="utf-8") as f:
        return dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', f.read(), re.M))


def codename():
    """Of the machine's Debian."""
    release = os_release()
    if release.get("ID") != "debian":
        raise ImageError("the guest image is made from Debian's packages with Debian's apt: this is "
                         + release.get("PRETTY_NAME", "another distribution"))
    return release["VERSION_CODENAME"]


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


def _machine_sources(etc_apt):
    """All of the machine's sources that are in use."""
    found = []
    for path in sorted(glob.glob(etc_apt + "/sources.list.d/*.sources")):
        with open(path, encoding="utf-8") as f:
            found += _stanzas(f.read())
    for path in [etc_apt + "/sources.list"] + sorted(glob.glob(etc_apt + "/sources.list.d/*.list")):
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                found += _one_line_sources(f.read())
    return [source for source in found if "deb" in source.get("types", "").split()
            and source.get("enabled", "yes").lower() not in ("no", "false")]


def _own_suites(source, suites):
    """Those of the suites that a source has; third parties' sources have none."""
    signed_by = source.get("signed-by", "")
    if "main" not in source.get("components", "") or (signed_by and KEYRING not in signed_by):
        return []
    return [suite for suite in source.get("suites", "").split() if suite in suites]


def _stanza(source, suites, signed_by):
    text = f"Types: deb\nURIs: {source['uris']}\nSuites: {' '.join(suites)}\nComponents: main\n"
    return text + (f"Signed-By: {signed_by}\n\n" if signed_by else "\n")


def archive_sources(name, etc_apt="/etc/apt"):
    """This machine's sources for the distribution's own suites, in deb822 format; third parties' are left out."""
    wanted = {name, name + "-updates", name + "-security"}
    text = ""
    for source in _machine_sources(etc_apt):
        suites = _own_suites(source, wanted)
        if suites:
            text += _stanza(source, suites, source.get("signed-by", ""))
    if not text:
        raise ImageError(f"no apt source for {name} main in {etc_apt}: the guest image is made from it")
    return text


def release_sources(name, suite, etc_apt="/etc/apt"):
    """The archive that this machine (its codename is name) gets its release from, in deb822 format, for a suite."""
    for source in _machine_sources(etc_apt):
        if _own_suites(source, {name}):
            signed_by = source.get("signed-by", "")
            return _stanza(source, [suite], ALL_KEYS if signed_by and os.path.exists(ALL_KEYS) else signed_by)
    raise ImageError(f"no apt source for {name} main in {etc_apt}: the guests' kernels come from there")


def apt_options():
    """How this machine reaches its archive (proxies, snapshot settings), as options of mmdebstrap."""
    dump = subprocess.run(["apt-config", "dump"], check=True, capture_output=True, text=True).stdout
    wanted = r"^(Acquire::(?:https?::.*|Check-Valid-Until|Check-Date|Retries) \".*\";)$"
    return [f"--aptopt={line}" for line in re.findall(wanted, dump, re.M) if not line.endswith('"";')]


def run(argv, log, **kwargs):
    """A program whose output goes to a log, and which must not fail."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, check=False, **kwargs)
    if done.returncode != 0:
        raise ImageError(f"{argv[0]} failed with status {done.returncode}: see {log.name}")


class Suite:
    """Packages of one suite, apart from what the machine has installed. Everything is kept below a directory."""

    def __init__(self, sources, directory, log):
        self.directory = directory
        self.log = log
        for name in ("lists/partial", "archives/partial"):
            os.makedirs(os.path.join(directory, name))
        path = os.path.join(directory, "suite.sources")
        with open(path, "w", encoding="utf-8") as f:
            f.write(sources)
        self.options = [f"-o{key}={value}" for key, value in {
            "Dir::State::Lists": os.path.join(directory, "lists"), "Dir::State::Status": "/dev/null",
            "Dir::Cache": directory, "Dir::Etc::SourceList": path, "Dir::Etc::SourceParts": "/nonexistent",
            "Dir::Etc::Preferences": "/nonexistent", "Dir::Etc::PreferencesParts": "/nonexistent",
            "APT::Sandbox::User": "", "APT::Architecture": "amd64"}.items()]
        run(["apt-get", *self.options, "update"], log)

    def dependency(self, package, pattern):
        """The first package whose name matches the pattern among those that the package depends on."""
        shown = subprocess.run(["apt-cache", *self.options, "show", "--no-all-versions", package],
                               capture_output=True, text=True, check=False)
        depends = re.search(r"^Depends: (.*)$", shown.stdout, re.M)
        names = [name for name in re.findall(r"[^\s,|]+", depends.group(1) if depends else "")
                 if re.fullmatch(pattern, name)]
        if not names:
            raise ImageError(f"the archive has no package {package} of the expected kind: {shown.stderr.strip()}")
        return names[0]

    def unpack(self, package):
        """A directory with the package's files."""
        run(["apt-get", *self.options, "download", package], self.log, cwd=self.directory)
        (path,) = glob.glob(os.path.join(self.directory, glob.escape(package) + "_*.deb"))
        root = os.path.join(self.directory, package)
        run(["dpkg-deb", "-x", path, root], self.log)
        return root
