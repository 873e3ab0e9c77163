# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs inside a guest: `work SECONDS`, ordinary work, the same again every so often, or `backup`.

Prints {"rounds": N}.
"""
import glob
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time

PLACE = "/var/tmp/pagefusion-bench"
PERIOD = 30  # seconds from the start of a round to that of the next, unless it takes longer


def run(*argv):
    """A program, of which only the work matters."""
    subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def unpack_and_compile():
    """As installing a package does."""
    library = glob.glob("/usr/lib/python3.*")[0]
    os.makedirs(PLACE, exist_ok=True)
    archive = PLACE + "/library.tar"
    run("tar", "cf", archive, "-C", library, "--exclude=__pycache__", "asyncio", "email", "json", "http")
    run("tar", "xf", archive, "-C", PLACE)
    run("python3", "-m", "compileall", "-q", PLACE + "/json", PLACE + "/http")
    shutil.rmtree(PLACE)


def back_up():
    """Reads the system's files and writes a big one: in a small guest most of the page cache has to make room."""
    run("sh", "-c", "tar cf - -C / usr | cat >/dev/null")
    path = PLACE + ".big"
    with open(path, "wb") as f:
        for _ in range(64):
            f.write(os.urandom(4096) * 256)
        f.flush()
        os.fsync(f.fileno())
    os.remove(path)


def serve():
    """Requests to nginx and redis."""
    for _ in range(30):
        line = http.client.HTTPConnection("127.0.0.1", 80, timeout=20)
        line.request("GET", "/")
        line.getresponse().read()
        line.close()
    with socket.create_connection(("127.0.0.1", 6379), timeout=20) as redis:
        for i in range(200):
            redis.sendall(f"SET key{i} {time.time_ns():x}{'v' * 500}\r\n".encode())
            redis.recv(64)
        redis.sendall(b"BGSAVE\r\n")
        redis.recv(64)


def write_a_little():
    """As a database does."""
    path = PLACE + ".db"
    with open(path, "wb") as f:
        for i in range(20):
            f.write(bytes([i]) * 4096)
            f.flush()
            os.fsync(f.fileno())
    os.remove(path)


def work():
    """One round."""
    unpack_and_compile()
    run("find", "/usr", "-xdev", "-newer", "/etc/passwd")
    for i in range(5):
        run("logger", f"round of work, line {i}")
    serve()
    write_a_little()
    run("systemctl", "restart", "nginx")


def work_for(seconds):
    """Rounds that were made."""
    end, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        due = time.monotonic() + PERIOD
        try:
            work()
        except OSError as error:
            print(f"guest_work: {error}", file=sys.stderr)  # nginx was not there yet
        rounds += 1
        time.sleep(max(0.0, min(due, end) - time.monotonic()))
    return rounds


def main():
    """The command."""
    if sys.argv[1] == "backup":
        back_up()
    rounds = work_for(float(sys.argv[2])) if sys.argv[1] == "work" else 1
    print(json.dumps({"rounds": rounds}))


if __name__ == "__main__":
    main()
