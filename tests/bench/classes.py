# SPDX-License-Identifier: LGPL-2.1-or-later
"""./run bench classes: what each class of pages saves, and what it costs in revokes, on guests that work.

Two guests of the same image run the real agent, the host the real service. The classes are switched on one after the
other; in each phase the guests do the same work, and the host's metrics say what is shared meanwhile and how many
pages had to be made private again because a guest wrote to them. Then both make a backup, which reads all of the
system and so turns most of the page cache over; a guest is taken to do that once a day. A class saves and costs what
its phase has more than the one before; the other way round would not do, since what is shared stays so when its class
is switched off. Other classes than that of the mappings are looked at ten times as often as the shipped
configuration says, so what they cost is rather too much than too little.
"""
import argparse
import base64
import json
import os
import signal
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.append(os.path.join(HERE, "../lab"))

import image as lab_image  # noqa: E402
from lab import Lab, Output, add_options  # noqa: E402
from libvirt_lab import SIGNALS, LabError, die_with_parent, enter_namespaces, wait_until  # noqa: E402
from product import REVOKED, SHARED, VM_HINTED  # noqa: E402

PLACE = "/opt/pagefusion-lab/"
GUEST_MIB = 384  # so little that the page cache is turned over
CLASSES = ["mapped", "kernel", "buffers", "cache"]  # the last one varies most
VOLATILE = ["buffers", "kernel"]  # told of when their bytes held still from one pass to the next
SLOW_INTERVAL = 60
PASS_SECONDS = 180
STABLE_SECONDS = 8
SETTLE_SECONDS = 90
WARM_SECONDS = 60
SAMPLE_SECONDS = 3
WORK_SECONDS = 240     # for what work is left after its time
BACKUPS_AN_HOUR = 1 / 24
PAGE_KIB = 4

REVOKE_US = 60         # of host CPU
CPUS_A_GIB = 1 / 8     # what a GiB is worth, in CPUs: machines are bought with 4 to 8 GiB for each
WORTH = 0.1            # a class may cost that part of what it saves

CONFIG = """[agent]
slow-interval = {slow}
cpu-limit = 10
[classes]
"""


class Interrupted(Exception):
    """A signal asked us to end."""


def config(on):
    """agent.conf with these classes on."""
    return CONFIG.format(slow=SLOW_INTERVAL) + "".join(f"{c} = {'on' if c in on else 'off'}\n" for c in CLASSES)


def put(guest, path, text):
    """Writes a file in a guest."""
    data = base64.b64encode(text.encode()).decode()
    guest.must(f"mkdir -p {os.path.dirname(path)} && echo {data} | base64 -d >{path}")


class Classes:
    """One run in a lab that was made for it."""

    def __init__(self, lab, options):
        self.lab = lab
        self.options = options
        self.out = lab.out

    def run(self):
        """All of it; the result as a dictionary."""
        self.out.say("starting libvirtd, pagefusiond and two guests")
        self.lab.start()
        for number in (1, 2):
            self.lab.add_guest(f"pf-bench-{number}", GUEST_MIB)
        self.lab.boot()
        for name in ("guest_work.py", "guest_idle.py"):
            with open(os.path.join(HERE, name), encoding="utf-8") as f:
                text = f.read()
            for guest in self.lab.guests:
                put(guest, PLACE + name, text)
        for guest in self.lab.guests:
            guest.must("systemctl stop '*.timer'")  # what they start would be in one phase and not in another
        result = {"accel": self.lab.libvirt.accel, "guest_mib": GUEST_MIB, "slow_interval_s": SLOW_INTERVAL,
                  "kernel": self.lab.guests[0].must("uname -r").strip()}
        result["idle"] = self.idle()
        self.out.say("a first backup and a minute of work, which do not count")
        self.reconfigure(CLASSES[:1])
        self.work("backup", seconds=0)
        self.work("work", WARM_SECONDS, seconds=WARM_SECONDS)
        result["phases"] = [self.phase(CLASSES[:n + 1]) for n in range(len(CLASSES))]
        result["classes"] = compare(result["phases"])
        return result

    def status(self, guest):
        """What the agent there says."""
        return json.loads(guest.must("pagefusion-agent --status --json"))

    def idle(self):
        """The agent's share of a guest's CPU while nothing starts or ends."""
        seconds = self.options.idle_seconds
        self.settle()
        self.out.say(f"the guests do nothing for {seconds} s")
        guest = self.lab.guests[0]
        before = self.status(guest)
        spent, wakeups = json.loads(guest.must(f"python3 {PLACE}guest_idle.py {before['pid']} {seconds}", seconds + 60))
        after = self.status(guest)
        return {"seconds": seconds, "cpu_percent": round(spent / 1e9 / seconds * 100, 4),
                "wakeups_per_minute": round(wakeups / seconds * 60, 1),
                "new_processes": after["new_processes"] - before["new_processes"],
                "passes": {c: after["classes"][c]["passes"] - before["classes"][c]["passes"] for c in CLASSES},
                "pages": sum(after["classes"][c]["pages"] for c in CLASSES),
                "rss_anon_kib": after["rss_anon_kib"], "rss_file_kib": after["rss_file_kib"]}

    def reconfigure(self, on):
        """Has the agents look for these classes; returns when each was looked at, the new one twice if it changes."""
        before = [self.status(guest) for guest in self.lab.guests]
        for guest in self.lab.guests:
            put(guest, "/etc/pagefusion/agent.conf", config(on))
            guest.ask("rescan")

        def looked(guest, old):
            now = self.status(guest)["classes"]
            return all(now[c]["impossible"] or
                       now[c]["passes"] > old["classes"][c]["passes"] + (c == on[-1] and c in VOLATILE) for c in on)
        for guest, old in zip(self.lab.guests, before):
            wait_until(lambda g=guest, o=old: time.sleep(2) or looked(g, o), PASS_SECONDS,
                       f"the agent of {guest.name} to look")
        self.settle()

    def settle(self):
        """Until nothing changes, or long enough."""
        samples, deadline = self.lab.samples, time.monotonic() + SETTLE_SECONDS
        samples.forget()
        samples.take()
        while not samples.stable(STABLE_SECONDS) and time.monotonic() < deadline:
            time.sleep(1)
            samples.take()

    def work(self, *what, seconds):
        """Has the guests do it; (shared KiB meanwhile, pages revoked, rounds of work, seconds that it took)."""
        guests, samples = self.lab.guests, self.lab.samples
        shared, rounds, started = [], 0, time.monotonic()
        before = samples.take()["host"][REVOKED]
        for guest in guests:
            guest.tell("run", command=f"python3 {PLACE}guest_work.py {' '.join(map(str, what))}")
        while time.monotonic() - started < seconds:
            time.sleep(SAMPLE_SECONDS)
            shared.append(samples.take()["host"][SHARED])
        for guest in guests:
            reply = guest.hear("run", WORK_SECONDS)
            if reply["status"] != 0:
                raise LabError(f"{guest.name}: the work failed: {reply['output']}")
            rounds += json.loads(reply["output"].splitlines()[-1])["rounds"]
        elapsed = time.monotonic() - started
        time.sleep(SAMPLE_SECONDS)
        return shared, samples.take()["host"][REVOKED] - before, rounds, elapsed

    def phase(self, on):
        """What is saved and revoked with these classes."""
        self.out.say(f"looking for: {', '.join(on)}")
        self.reconfigure(on)
        agents = [self.status(guest) for guest in self.lab.guests]
        quiet = self.lab.samples.take()
        shared, revoked, rounds, seconds = self.work("work", self.options.seconds, seconds=self.options.seconds)
        after = [self.status(guest) for guest in self.lab.guests]
        _shared, by_backup, _rounds, _seconds = self.work("backup", seconds=0)
        found = {
            "on": on, "seconds": round(seconds), "rounds": rounds,
            "shared_kib": quiet["host"][SHARED], "shared_kib_at_work": round(statistics.mean(shared)),
            "hinted_pages": sum(quiet[guest.name][VM_HINTED] for guest in self.lab.guests),
            "revoked_pages": revoked, "revoked_by_backup": by_backup,
            "revokes_per_hour": round(revoked / seconds * 3600 + by_backup * BACKUPS_AN_HOUR),
            "agent_cpu_percent": round(sum(b["cpu_us"] - a["cpu_us"] for a, b in zip(agents, after)) /
                                       len(agents) / seconds / 1e4, 3),
            "agent_rss_anon_kib": max(a["rss_anon_kib"] for a in after),
            "agent_pages": {c: [a["classes"][c]["pages"] for a in after] for c in on},
            "impossible": {c: after[0]["classes"][c]["impossible"] for c in on if after[0]["classes"][c]["impossible"]},
        }
        self.out.say(f"{found['shared_kib']} KiB shared ({found['shared_kib_at_work']} at work), "
                     f"{found['revokes_per_hour']} pages revoked an hour, {by_backup} by a backup")
        return found


def compare(phases):
    """What each class has more than the phase before it."""
    result, before = [], {"shared_kib": 0, "revokes_per_hour": 0}
    for phase in phases:
        name = phase["on"][-1]
        result.append(judge(name, phase["shared_kib"] - before["shared_kib"],
                            phase["revokes_per_hour"] - before["revokes_per_hour"], phase["impossible"].get(name)))
        before = phase
    return result


def judge(name, saved_kib, revokes, impossible=None):
    """A class, with what its revokes cost of what its memory is worth; that of both a GiB and a CPU."""
    pages = saved_kib / PAGE_KIB
    cost_s = max(0, revokes) * REVOKE_US / 1e6
    worth_s = max(0.0, saved_kib / (1 << 20) * CPUS_A_GIB * 3600)
    share = cost_s / worth_s if worth_s > 0 else None
    return {"class": name, "saved_kib": saved_kib, "revokes_per_hour": revokes,
            "revokes_per_saved_page_hour": round(revokes / pages, 3) if pages > 0 else None,
            "host_cpu_s_per_hour": round(cost_s, 3),
            "cost_of_worth": None if share is None else round(share, 4),
            "pays": share is not None and share <= WORTH, "impossible": impossible}


def summary(result):
    """Prints it."""
    print(f"Two guests of {result['guest_mib']} MiB ({result['accel']}, Linux {result['kernel']}); other classes than "
          f"mapped are looked at every {result['slow_interval_s']} s.")
    print(f"  {'class':10}{'saves':>12}{'revokes/h':>12}{'each saved page':>18}{'of its worth':>14}")
    for c in result["classes"]:
        each, share = c["revokes_per_saved_page_hour"], c["cost_of_worth"]
        if c["impossible"]:
            print(f"  {c['class']:10}not possible here: {c['impossible']}")
            continue
        print(f"  {c['class']:10}{c['saved_kib']:>8} KiB{c['revokes_per_hour']:>12}"
              f"{'-' if each is None else f'{each:.3f}':>18}{'-' if share is None else f'{share:.2%}':>14}"
              f"  {'pays' if c['pays'] else 'does not pay'}")
    idle = result["idle"]
    print(f"  An agent in a guest that does nothing: {idle['cpu_percent']:.3f} % of its CPU, "
          f"{idle['wakeups_per_minute']:.0f} wake-ups a minute ({result['accel']})")


def parse(argv):
    """The command line."""
    parser = argparse.ArgumentParser(prog="run bench classes", description="What each class of pages saves and costs.")
    parser.add_argument("--json", metavar="FILE", help="write the result there")
    parser.add_argument("--seconds", type=int, default=180, help="of work in each phase (default 180)")
    parser.add_argument("--idle-seconds", type=int, default=180, help="of doing nothing (default 180)")
    add_options(parser)
    return parser.parse_args(argv)


def interrupt(_signum, _frame):
    """Ends the run, once."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    raise Interrupted()


def main(argv):
    """The command."""
    options = parse(argv)
    if options.with_parent:
        die_with_parent()
    for signum in SIGNALS:
        signal.signal(signum, interrupt)
    lab, out = None, Output()
    try:
        image = lab_image.ensure_image(options.cache, options.image_log, out.say)
        enter_namespaces()
        lab = Lab(options.build, options.agent_unit, image, out)
        result = Classes(lab, options).run()
        if options.json:
            with open(options.json, "w", encoding="utf-8") as f:
                json.dump(result, f, indent=2)
                f.write("\n")
        summary(result)
        return 0
    except Interrupted:
        out.say("interrupted: cleaning up")
        return 130
    except (LabError, lab_image.ImageError, OSError, ValueError, subprocess.CalledProcessError) as error:
        if lab:
            lab.explain()
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        if lab:
            lab.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
