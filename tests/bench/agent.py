# SPDX-License-Identifier: LGPL-2.1-or-later
"""./run bench agent: what the guest agent finds and what it costs, natively, with a stand-in for the host.

The machine is the guest. What is mapped here is found by tests/lab/walker.py, which shares nothing with the agent;
CPU time, memory and wake-ups are the kernel's counts of the agent's process. Everything lies in a directory below the
build directory and in a memory cgroup, both of which are taken away again.
"""
import argparse
import hashlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.append(os.path.join(HERE, "../lab"))

import machine  # noqa: E402
import walker  # noqa: E402
from agent_process import Agent, eager  # noqa: E402
from channel import ProtocolError, StandIn  # noqa: E402
from machine import BenchError  # noqa: E402

PAGE = 4096
MIB = 1 << 20
REPORTED_PAGES = 100000
SPARE_PAGES = 1000  # what is mapped elsewhere may become less meanwhile
FILE_PAGES = 12500
PROGRAM_RUNS = 5
QUIET_SECONDS = 3  # after which nothing that was started counts as new any more

# Of the runs under memory pressure.
LIMIT_MIB, MAPPED_MIB, HOT_MIB, READ_MIB = 96, 40, 56, 160
PRESSURE_PAIRS = 5
PRESSURE_SECONDS = 10

BOUNDS = {"reported": 0.99, "idle_cpu_percent": 0.1, "rss_anon_kib": 8192, "hash_gib_s": 1.0, "new_program_ms": 5000,
          "refaults": 1.05}


class Interrupted(Exception):
    """A signal asked us to end."""


class Workload:
    """A process of workload.py's."""

    def __init__(self, cgroup=None):
        # It waits for its first line while it is put where it belongs.
        self.process = subprocess.Popen([sys.executable, "-B", os.path.join(HERE, "workload.py")],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if cgroup:
            cgroup.add(self.process.pid)
        self._answer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise BenchError("the process that maps files has ended")
        return json.loads(line)["seconds"]

    def ask(self, do, **arguments):
        """Seconds that it took."""
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        return self._answer()


def make_file(path, n_pages):
    """A file on the disk, of which nothing is in memory."""
    with open(path, "wb") as f:
        for first in range(0, n_pages, 256):
            f.write(os.urandom(min(256, n_pages - first) * PAGE))
        f.flush()
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def walk():
    """{PFN: (map_files link, file page)} of what is mapped r or rx and resident, in RAM."""
    ram = machine.ram_ranges()
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
    found = {}
    try:
        for link, name, wanted in walker.read_only_mappings().values():
            if not wanted or name.startswith("/memfd:") or name.startswith("/dev/"):
                continue
            try:
                pfns = walker.resident(link, wanted, pagemap)
            except OSError:
                continue  # the process is gone
            found.update({pfn: (link, page) for page, pfn in pfns.items() if any(a <= pfn <= b for a, b in ram)})
    finally:
        os.close(pagemap)
    return found


def digests_of(link, pages):
    """{file page: SHA-256 of what a reader sees there}"""
    try:
        fd = os.open(link, os.O_RDONLY)
    except OSError:
        return {}
    try:
        return {page: hashlib.sha256(os.pread(fd, PAGE, page * PAGE).ljust(PAGE, b"\0")).digest() for page in pages}
    finally:
        os.close(fd)


def compare(found, report):
    """(pages reported as what they are, pages whose digest is another one) of those that the walk found."""
    by_file = {}
    for pfn, (link, page) in found.items():
        by_file.setdefault(link, {})[page] = pfn
    right = wrong = 0
    for link, pages in by_file.items():
        said = {page: report.page(pfn) for page, pfn in pages.items()}
        here = [page for page, what in said.items() if what and what[1] == page]
        for page, digest in digests_of(link, here).items():
            right += said[page][2] == digest
            wrong += said[page][2] != digest
    return right, wrong


class Bench:
    """One run; each part has its share of the result."""

    def __init__(self, options, directory):
        self.options = options
        self.directory = directory
        self.result = {}
        self.started = time.monotonic()

    def say(self, text):
        """Progress."""
        print(f"[{time.monotonic() - self.started:6.1f} s] {text}", flush=True)

    def agent(self, stand_in, config):
        """One that runs until it is left."""
        return Agent(self.options.agent, stand_in, self.directory, config)

    def run(self):
        """All of it; the result as a dictionary."""
        version = subprocess.run([self.options.agent, "--version"], check=True, capture_output=True, text=True).stdout
        self.result = {"agent": self.options.agent, "version": version.split()[-1], **machine.facts()}
        self.hash_speed()
        self.coverage()
        self.cost()
        self.pressure()
        return self.result

    def hash_speed(self):
        """hash_gib_s"""
        self.say("hashing 256 MiB of different pages")
        done = subprocess.run([self.options.hash_speed], check=True, capture_output=True, text=True)
        self.result["hash_gib_s"] = float(done.stdout)

    def coverage(self):
        """mapped_pages, reported_pages: what an independent walk finds, before and after a pass and so beyond doubt."""
        self.say("comparing a report with an independent walk")
        stand_in = StandIn()
        try:
            with self.agent(stand_in, eager(3600)) as agent:
                agent.wait_passes({})
                before = walk()
                agent.rescan()
                after = walk()
                found = {pfn: what for pfn, what in after.items() if before.get(pfn) == what}
                right, wrong = stand_in.look(lambda report: compare(found, report))
        finally:
            stand_in.close()
        self.result.update(mapped_pages=len(found), reported_pages=right, wrong_digests=wrong)

    def cost(self):
        """What the agent costs as a user has it, with 100,000 pages to report."""
        with Workload() as workload:
            stand_in = StandIn()
            try:
                self.fill_up(workload)
                with self.agent(stand_in, "") as agent:
                    self.first_scan(agent)
                    self.new_programs(agent)
                    self.rescan(agent)
                    self.idle(agent)
            finally:
                stand_in.close()

    def fill_up(self, workload):
        """Maps files until the agent has 100,000 pages to report, if it would not have them anyway."""
        stand_in = StandIn()
        try:
            with self.agent(stand_in, "[agent]\nhash-limit = 1024G\n") as agent:
                agent.wait_passes({})
                there = stand_in.look(lambda report: len(report.at))
        finally:
            stand_in.close()
        missing = max(0, REPORTED_PAGES + SPARE_PAGES - there)
        self.say(f"{there} pages are there to report; mapping {missing} more")
        paths = []
        while missing > 0:
            paths.append(os.path.join(self.directory, f"mapped-{len(paths)}"))
            make_file(paths[-1], min(missing, FILE_PAGES))
            missing -= FILE_PAGES
        workload.ask("map", files=paths)

    def first_scan(self, agent):
        """The first pass of each class, and the memory that it takes."""
        self.say("the first scan, as the shipped configuration has it")
        peak = 0

        def watch():
            nonlocal peak
            peak = max(peak, agent.memory_kib()[0])
        agent.wait_passes({}, watch=watch)
        self.result["scan_cpu_ms"] = {"first": round(agent.cpu_ns() / 1e6, 1)}
        self.result["rss_anon_peak_kib"] = peak
        self.result["scan_classes"] = {
            name: {"pages": c["pages"], "files": c["files"], "first_cpu_ms": round(c["cpu_us"] / 1000, 1)}
            for name, c in agent.status()["classes"].items() if c["on"]}

    def rescan(self, agent):
        """Passes in which nothing has changed."""
        self.say("scans without change")
        time.sleep(QUIET_SECONDS)
        agent.rescan()
        self.result["scan_cpu_ms"]["rescan"] = round(statistics.median(agent.rescan() for _ in range(3)) / 1e6, 1)
        for name, c in agent.status()["classes"].items():
            if c["on"]:
                self.result["scan_classes"][name]["rescan_cpu_ms"] = round(c["cpu_us"] / 1000, 1)
        anon, files = agent.memory_kib()
        self.result.update(rss_pages=agent.stand_in.look(lambda report: len(report.at)), rss_anon_kib=anon,
                           rss_file_kib=files, sent_kib=agent.stand_in.conversation.bytes >> 10)

    def new_programs(self, agent):
        """Milliseconds from exec() to the first hint that names the program."""
        self.say("starting programs that never ran before")
        times = []
        for number in range(PROGRAM_RUNS):
            path = os.path.join(self.directory, f"program-{number}")
            shutil.copy(shutil.which("sleep"), path)
            with open(path, "ab") as f:
                f.write(os.urandom(PAGE))  # a file that nobody has
            started = time.monotonic()
            with subprocess.Popen([path, "60"], preexec_fn=machine.die_with_parent) as program:
                try:
                    name = os.path.basename(path)
                    heard = agent.stand_in.wait(lambda report, n=name: report.first_hint.get(n), 90)
                finally:
                    program.terminate()
            times.append(round((heard - started) * 1000) if heard else None)
        heard = [t for t in times if t is not None]
        self.result["new_program_ms"] = max(heard) if len(heard) == len(times) else None
        self.result["new_program_ms_all"] = times

    def idle(self, agent):
        """The agent's share of a CPU while nothing starts or ends."""
        seconds = self.options.idle_seconds
        self.say(f"doing nothing for {seconds} s")
        passes, load = agent.passes(), machine.Load()
        cpu, wakeups, started = agent.cpu_ns(), agent.wakeups(), time.monotonic()
        time.sleep(seconds)
        elapsed = time.monotonic() - started
        cpu, wakeups = agent.cpu_ns() - cpu, agent.wakeups() - wakeups
        agent.stand_in.wait(lambda _report: True, 0)  # nothing went wrong meanwhile
        others, forks = load.others(cpu)
        self.result.update(
            idle_seconds=round(elapsed), idle_cpu_percent=round(cpu / 1e9 / elapsed * 100, 4),
            idle_wakeups_per_minute=round(wakeups / elapsed * 60, 1),
            idle_passes={name: n - passes[name] for name, n in agent.passes().items()},
            idle_others_cpu_percent=others, idle_processes_started=forks,
            idle_disturbed=others > 5 or forks / elapsed * 60 > 2)

    def pressure(self):
        """Refaults of a workload that does not fit into its memory, without an agent and with one that always looks."""
        if not machine.on_disk(self.directory):
            raise BenchError(f"{self.directory} is not on a disk: nothing there is ever evicted")
        mapped, read = (os.path.join(self.directory, name) for name in ("pressure-mapped", "pressure-read"))
        make_file(mapped, MAPPED_MIB * MIB // PAGE)
        make_file(read, READ_MIB * MIB // PAGE)
        cgroup = machine.MemoryCgroup(LIMIT_MIB * MIB)
        try:
            with Workload(cgroup) as workload:
                self.rounds(workload, mapped, read)
        finally:
            cgroup.close()

    def rounds(self, workload, mapped, read):
        """Alternating; which of a pair comes first alternates too."""
        def work(n, seed):
            # What is mapped is used once and then no more: it is what ought to go.
            before = machine.vmstat("workingset_refault_file")
            workload.ask("map", files=[mapped])
            workload.ask("read", file=read, n=n, seed=seed, hot=HOT_MIB * MIB // PAGE)
            return machine.vmstat("workingset_refault_file") - before

        self.say("filling the memory of the workload")
        n = 2 * READ_MIB * MIB // PAGE
        work(n, 0)
        started = time.monotonic()
        work(n, 1)
        n = int(n / (time.monotonic() - started) * self.options.pressure_seconds)
        work(n, 2)  # until which pages have stayed no longer depends on how it began
        found, passes, read_bytes = {True: [], False: []}, 0, 0
        for pair in range(PRESSURE_PAIRS):
            for with_agent in (False, True) if pair % 2 == 0 else (True, False):
                self.say(f"{n} reads of {READ_MIB} MiB in {LIMIT_MIB} MiB, with{'' if with_agent else 'out'} an agent")
                if not with_agent:
                    found[False].append(work(n, 3 + pair))
                    continue
                stand_in = StandIn()
                try:
                    with self.agent(stand_in, eager(1, self.directory)) as agent:
                        agent.wait_passes({})
                        first, bytes_before = agent.passes(), agent.read_bytes()
                        found[True].append(work(n, 3 + pair))
                        passes += sum(agent.passes().values()) - sum(first.values())
                        read_bytes += agent.read_bytes() - bytes_before
                finally:
                    stand_in.close()
        self.result.update(
            refaults_with=statistics.median(found[True]), refaults_without=statistics.median(found[False]),
            refaults_all={"with": found[True], "without": found[False]}, refaults_reads=n, refaults_passes=passes,
            refaults_agent_read_kib=read_bytes >> 10)


def judge(result):
    """[(whether it holds, what was wanted, what was found)]"""
    reported = result["reported_pages"] / max(1, result["mapped_pages"])
    rss_bound = BOUNDS["rss_anon_kib"] * max(1.0, result["rss_pages"] / REPORTED_PAGES)
    program = result["new_program_ms"]
    hashing = result["hash_gib_s"]
    return [
        (reported >= BOUNDS["reported"] and not result["wrong_digests"],
         "reported rightly, of what an independent walk finds mapped: at least 99 %",
         f"{reported:.2%} of {result['mapped_pages']} pages, {result['wrong_digests']} wrong"),
        (result["idle_cpu_percent"] <= BOUNDS["idle_cpu_percent"], "CPU while nothing happens: at most 0.1 %",
         f"{result['idle_cpu_percent']:.3f} %, {result['idle_wakeups_per_minute']:.0f} wake-ups a minute"),
        (result["rss_anon_kib"] <= rss_bound and result["rss_pages"] >= REPORTED_PAGES,
         f"anonymous memory for {result['rss_pages']} pages: at most {rss_bound / 1024:.1f} MiB",
         f"{result['rss_anon_kib'] / 1024:.1f} MiB (and {result['rss_file_kib'] / 1024:.1f} MiB of files)"),
        (hashing >= BOUNDS["hash_gib_s"] or not result["sha_instructions"],
         "hashing: at least 1 GiB/s where the CPU has SHA instructions", f"{hashing:.2f} GiB/s"),
        (program is not None and program <= BOUNDS["new_program_ms"],
         "a new program's first hint: at most 5 s after exec", "never" if program is None else f"{program} ms"),
        (result["refaults_with"] <= result["refaults_without"] * BOUNDS["refaults"],
         "refaults under memory pressure, with the agent against without: at most 5 % more",
         f"{result['refaults_with']:.0f} against {result['refaults_without']:.0f}"),
    ]


def summary(result):
    """Prints it; whether every bound held."""
    scans = result["scan_cpu_ms"]
    print(f"{result['cpu']}, Linux {result['kernel']}: the first scan took {scans['first']} ms of CPU, one without "
          f"change {scans['rescan']} ms; {result['sent_kib']} KiB were sent")
    if result["idle_disturbed"]:
        print(f"  the machine was not idle: others used {result['idle_others_cpu_percent']} % of a CPU and started "
              f"{result['idle_processes_started']} processes in {result['idle_seconds']} s")
    verdicts = judge(result)
    for holds, wanted, value in verdicts:
        print(f"  {'pass' if holds else 'FAIL'}  {wanted}: {value}")
    return all(holds for holds, _wanted, _value in verdicts)


def parse(argv):
    """The command line."""
    parser = argparse.ArgumentParser(prog="run bench agent", description="What the guest agent finds and costs.")
    parser.add_argument("--json", metavar="FILE", help="write the result there")
    parser.add_argument("--idle-seconds", type=int, default=600, help="of doing nothing (default 600)")
    parser.add_argument("--pressure-seconds", type=int, default=PRESSURE_SECONDS,
                        help=f"of each round under memory pressure (default {PRESSURE_SECONDS})")
    parser.add_argument("--build", required=True, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.agent = os.path.join(options.build, "guest-agent/pagefusion-agent")
    options.hash_speed = os.path.join(options.build, "tests/bench/hash_speed")
    return options


def interrupt(_signum, _frame):
    """Ends the run, once."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    raise Interrupted()


def main(argv):
    """The command."""
    options = parse(argv)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, interrupt)
    directory = None
    try:
        directory = tempfile.mkdtemp(prefix="bench-", dir=options.build)
        machine.own_run_directory()
        result = Bench(options, directory).run()
        if options.json:
            with open(options.json, "w", encoding="utf-8") as f:
                json.dump(result, f, indent=2)
                f.write("\n")
        return 0 if summary(result) else 1
    except Interrupted:
        print("bench: interrupted: cleaning up", file=sys.stderr)
        return 130
    except (BenchError, ProtocolError, OSError, subprocess.CalledProcessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        if directory:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
