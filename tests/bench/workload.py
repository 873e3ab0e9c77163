# SPDX-License-Identifier: LGPL-2.1-or-later
"""A process of the bench that maps and reads files, as it is told on its standard input, a JSON object a line:
  {"do": "map", "files": [P]}                    maps files read-only, all of it present, and keeps them mapped
  {"do": "read", "file": P, "n": N, "seed": S, "hot": H}  reads N pages at random, nine out of ten among the first H
Each is answered with a line {"seconds": ...}. Ends with its standard input.
"""
import ctypes
import json
import mmap
import os
import random
import sys
import time

PAGE = 4096
mapped = {}


def map_file(path):
    """Maps it once; touches every page each time."""
    if path not in mapped:
        with open(path, "rb") as f:
            mapped[path] = mmap.mmap(f.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
    memory = mapped[path]
    for at in range(0, len(memory), PAGE):
        memory[at]  # pylint: disable=pointless-statement


def read_file(path, n, seed, hot):
    """Through read(), so that the kernel sees which pages are used again."""
    chance = random.Random(seed)
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        pages = os.fstat(fd).st_size // PAGE
        for _ in range(n):
            page = chance.randrange(hot) if chance.random() < 0.9 else chance.randrange(pages)
            os.pread(fd, PAGE, page * PAGE)
    finally:
        os.close(fd)


def main():
    """Serves standard input."""
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: not without whoever started us
    print(json.dumps({"seconds": 0}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        started = time.monotonic()
        if request["do"] == "map":
            for path in request["files"]:
                map_file(path)
        else:
            read_file(request["file"], request["n"], request["seed"], request["hot"])
        print(json.dumps({"seconds": time.monotonic() - started}), flush=True)


if __name__ == "__main__":
    main()
