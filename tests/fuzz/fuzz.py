#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs every fuzz target for its share of the time, then measures which of its parser's lines were reached.

Two builds of the same targets: libFuzzer with the sanitizers looks for inputs, and a plain one with clang's coverage
runs the tree's corpus and what was found. Every target must reach 90 % of the lines that it names in its CMakeLists.txt.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time

WANTED_PERCENT = 90
NEWS_EVERY_S = 30
# One input may take so long and use so much before it counts as a crash.
INPUT_S = 20
INPUT_MIB = 2048


class FuzzError(Exception):
    """What keeps us from fuzzing at all."""


class Target:
    """One fuzz target: its programs, its corpus, and what has become of it."""

    def __init__(self, name, parses, args):
        self.name = name
        self.parses = parses
        self.program = os.path.join(args.build, "tests/fuzz/fuzz_" + name)
        self.coverage_program = os.path.join(args.coverage, "tests/fuzz/fuzz_" + name)
        self.corpus = os.path.join(args.source, "tests/fuzz/corpus", name)
        self.found = os.path.join(args.build, "found", name)
        self.crash_dir = os.path.join(args.build, "crashes")
        self.log = os.path.join(args.build, "log", name + ".log")
        self.process = self.started = None
        self.executions = self.executions_per_s = self.corpus_files = self.lines = self.lines_covered = 0
        self.crashes = []

    def start(self, seconds):
        """Starts libFuzzer; what an earlier run has found is forgotten, but for its crashes."""
        shutil.rmtree(self.found, ignore_errors=True)
        for directory in (self.found, self.crash_dir, os.path.dirname(self.log)):
            os.makedirs(directory, exist_ok=True)
        self.started = time.time()
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [self.program, f"-max_total_time={seconds}", f"-timeout={INPUT_S}", f"-rss_limit_mb={INPUT_MIB}",
                 "-print_final_stats=1", f"-artifact_prefix={self.crash_dir}/{self.name}-", self.found, self.corpus],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def read_log(self):
        """Everything libFuzzer has said so far."""
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return log.read()

    def executions_so_far(self):
        """By its last sign of life."""
        pulses = re.findall(r"^#(\d+)\s", self.read_log(), re.M)
        return int(pulses[-1]) if pulses else 0

    def finish(self):
        """Takes the result of a process that has ended."""
        text = self.read_log()
        executions = re.search(r"stat::number_of_executed_units:\s*(\d+)", text)
        self.executions = int(executions.group(1)) if executions else self.executions_so_far()
        seconds = max(time.time() - self.started, 1)
        self.executions_per_s = round(self.executions / seconds)
        self.corpus_files = len(os.listdir(self.corpus)) + len(os.listdir(self.found))
        self.crashes = re.findall(r"Test unit written to (\S*/%s-(?!slow-unit)\S+)" % re.escape(self.name), text)
        if self.process.returncode != 0 and not self.crashes:
            # Killed from outside, or it could not begin: no input is to blame, but it is no pass either.
            self.crashes = [self.log]
        outcome = f"{len(self.crashes)} crash(es)" if self.crashes else "no crash"
        say(f"{self.name}: {self.executions} executions in {seconds:.0f} s, {outcome}")

    def end(self):
        """Ends the process, if it runs."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def measure(self):
        """Which lines of the parser the corpus and what was found reach."""
        raw, data = self.log + ".profraw", self.log + ".profdata"
        directories = [d for d in (self.corpus, self.found) if os.listdir(d)]
        done = subprocess.run([self.coverage_program, *directories], stdin=subprocess.DEVNULL, capture_output=True,
                              env={**os.environ, "LLVM_PROFILE_FILE": raw}, check=False)
        if done.returncode != 0 and self.crashes:
            return
        if done.returncode != 0:
            raise FuzzError(f"{self.coverage_program} ends with {done.returncode}: "
                            + done.stderr.decode(errors="replace")[-400:])
        subprocess.run(["llvm-profdata", "merge", "-sparse", raw, "-o", data], check=True)
        lcov = subprocess.run(["llvm-cov", "export", "-format=lcov", f"-instr-profile={data}", self.coverage_program],
                              capture_output=True, text=True, check=True).stdout
        os.unlink(raw)
        self.lines, self.lines_covered = count_lines(lcov, self.parses)

    @property
    def percent(self):
        """Of the parser's lines."""
        return 100 * self.lines_covered / self.lines if self.lines else 0

    @property
    def passed(self):
        """Whether it is as it should be."""
        return not self.crashes and self.percent >= WANTED_PERCENT

    def reproduce(self, crash):
        """How to see a crash again."""
        return f"less {crash}" if crash == self.log else f"{self.program} {crash}"

    def summary(self):
        """For JSON."""
        return {"name": self.name, "executions": self.executions, "executions_per_s": self.executions_per_s,
                "corpus_files": self.corpus_files, "parses": self.parses, "lines": self.lines,
                "lines_covered": self.lines_covered, "coverage_percent": round(self.percent, 1),
                "crashes": [{"input": c, "reproduce": self.reproduce(c)} for c in self.crashes],
                "passed": self.passed}


def say(text):
    """Progress."""
    print("== " + text, flush=True)


def lines_of(lcov):
    """Of each file its lines and how often they ran, and where its functions begin."""
    files, functions, lines = {}, {}, {}
    for entry in lcov.splitlines():
        kind, _, value = entry.partition(":")
        if kind == "SF":
            functions, lines = {}, {}
            files[value] = (lines, functions)
        elif kind == "FN":
            first, _, name = value.partition(",")
            functions[name.rpartition(":")[2]] = int(first)
        elif kind == "DA":
            line, count = value.split(",")[:2]
            lines[int(line)] = max(lines.get(int(line), 0), int(count))
    return files


def only(lines, functions, names):
    """The lines of these functions: each ends where the next one begins."""
    chosen = {}
    for name in names:
        if name not in functions:
            raise FuzzError(f"PARSES names a function that there is not: {name}")
        first = functions[name]
        end = min((f for f in functions.values() if f > first), default=sys.maxsize)
        chosen.update({line: count for line, count in lines.items() if first <= line < end})
    return chosen


def count_lines(lcov, parses):
    """How many lines there are in what a target parses, and how many of them ran."""
    total = covered = 0
    files = lines_of(lcov)
    for entry in parses:
        path, _, names = entry.partition(":")
        found = [f for f in files if f.endswith("/" + path)]
        if not found:
            raise FuzzError(f"PARSES names a file that the target does not hold: {path}")
        lines, functions = files[found[0]]
        if names:
            lines = only(lines, functions, names.split(","))
        total += len(lines)
        covered += sum(count > 0 for count in lines.values())
    return total, covered


def news(running):
    """A sign of life."""
    say("running: " + ", ".join(f"{t.name} ({t.executions_so_far()} executions)" for t in running))


def fuzz(targets, seconds):
    """All of them, as many at once as there are processors."""
    at_once = min(len(os.sched_getaffinity(0)), len(targets))
    share = max(seconds * at_once // len(targets), 1)
    waiting, running, told = list(targets), [], time.time()
    say(f"{len(targets)} fuzz targets, {at_once} at once, {share} s each")
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(waiting.pop(0))
                running[-1].start(share)
            for target in [t for t in running if t.process.poll() is not None]:
                running.remove(target)
                target.finish()
            if time.time() - told >= NEWS_EVERY_S and running:
                news(running)
                told = time.time()
            time.sleep(0.1)
    finally:
        for target in running:
            target.end()


def print_table(targets):
    """What has come of it."""
    print(f"\n{'target':<20} {'executions':>11} {'per s':>8} {'corpus':>7} {'lines':>6} {'reached':>8} {'crashes':>8}"
          "  parses")
    for t in targets:
        print(f"{t.name:<20} {t.executions:>11} {t.executions_per_s:>8} {t.corpus_files:>7} {t.lines:>6} "
              f"{t.percent:>6.1f} % {len(t.crashes):>8}  {' '.join(p.partition(':')[0] for p in t.parses)}")
    print()
    for t in targets:
        for crash in t.crashes:
            print(f"{t.name}: CRASH, kept in {crash}\n    to see it again: {t.reproduce(crash)}")
        if not t.crashes and t.percent < WANTED_PERCENT:
            print(f"{t.name}: reaches {t.percent:.1f} % of its parser's lines, less than {WANTED_PERCENT} %: "
                  f"add inputs to tests/fuzz/corpus/{t.name}")


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, help="of the preset fuzz")
    parser.add_argument("--coverage", required=True, help="of the preset fuzz-coverage")
    parser.add_argument("--source", default=".")
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--json")
    parser.add_argument("targets", nargs="*", help="only these")
    return parser.parse_args()


def main():
    """0: no crash, and everything was reached."""
    args = parse_arguments()
    with open(os.path.join(args.build, "fuzz_targets.json"), encoding="utf-8") as file:
        known = json.load(file)
    unknown = set(args.targets) - set(known)
    if unknown:
        raise FuzzError("there is no fuzz target " + ", ".join(sorted(unknown)))
    targets = [Target(name, known[name], args) for name in args.targets or known]
    fuzz(targets, args.seconds)
    say("measuring what was reached")
    for target in targets:
        target.measure()
    print_table(targets)
    passed = all(t.passed for t in targets)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"seconds": args.seconds, "wanted_percent": WANTED_PERCENT, "passed": passed,
                       "targets": [t.summary() for t in targets]}, file, indent=2)
            file.write("\n")
    return 0 if passed else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (FuzzError, OSError, subprocess.CalledProcessError) as error:
        print(f"fuzz: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
