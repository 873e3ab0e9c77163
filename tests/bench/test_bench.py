# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bench's own tools: what hears the agent and what judges must itself be right."""
import hashlib
import os
import struct
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.append(os.path.join(HERE, "../lab"))

import agent  # noqa: E402
import channel  # noqa: E402
import classes  # noqa: E402

SESSION = struct.pack("<Q", 77)
KNOCK = bytes.fromhex("50464731 02000000 261d2694 1200")


def varint(value):
    """As protobuf writes it."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7f | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def number(field, value):
    """A field with a number."""
    return varint(field << 3) + varint(value)


def block(field, data):
    """A field with a length."""
    return varint(field << 3 | 2) + varint(len(data)) + data


def message(body, data, session=SESSION):
    """A frame of the agent's."""
    return channel.frame(b"\x09" + session + block(body, data))


def module(ident, name):
    """Declares a file of ten pages."""
    return message(channel.MODULE, number(1, ident) + block(3, name) + number(4, 10))


def hints(ident, *runs):
    """Runs (file page, gfn, digests)."""
    return message(channel.HINTS, number(1, ident) + b"".join(
        block(2, number(1, page) + number(2, gfn) + block(3, digests)) for page, gfn, digests in runs))


def digest(letter):
    """Of a page."""
    return letter.encode() * 32


class Channel(unittest.TestCase):
    """The host's side of the guest channel."""

    def setUp(self):
        self.host = channel.Conversation()
        self.host.feed(KNOCK, 0)
        self.host.session = 77

    def page(self, gfn):
        """(name, file page, digest) of what is known to be there."""
        found = self.host.report.page(gfn)
        return found and (found[0].name, found[1], found[2])

    def test_checksum_of_the_standard(self):
        self.assertEqual(channel.crc32c(b"123456789"), 0xe3069283)

    def test_frames_of_the_specification(self):
        session = 0xefcdab8967452301
        self.assertEqual(channel.host_hello(session), bytes.fromhex(
            "504647310f000000b54279d10a0d090123456789abcdef10011808"))
        self.assertEqual(channel.ack(session, 3), bytes.fromhex("504647310d0000001c563590120b090123456789abcdef1003"))

    def test_a_knock_is_answered_with_a_hello(self):
        answer = self.host.feed(KNOCK, 0)
        self.assertEqual(answer, channel.host_hello(self.host.session))
        self.assertNotEqual(self.host.session, 0)

    def test_a_report_in_pieces_of_any_size(self):
        stream = module(1, b"libc") + hints(1, (2, 100, digest("a") + digest("b"))) + message(channel.REPORT_END, b"")
        for size in (1, 7, len(stream)):
            self.setUp()
            answers = [self.host.feed(stream[at:at + size], 5) for at in range(0, len(stream), size)]
            self.assertEqual([a for a in answers if a][-1], channel.ack(77, 3))
            self.assertEqual(self.page(101), ("libc", 3, digest("b")))
            self.assertEqual(self.host.report.ends, 1)
            self.assertEqual(self.host.report.first_hint, {"libc": 5})

    def test_a_hint_takes_the_place_of_what_was_there(self):
        self.host.feed(module(1, b"one") + module(2, b"two") + hints(1, (0, 50, digest("a"))), 0)
        self.host.feed(hints(2, (4, 50, digest("c"))), 0)  # another file's page is there now
        self.assertEqual(self.page(50), ("two", 4, digest("c")))
        self.assertEqual(self.host.report.modules[1].pages, {})
        self.host.feed(hints(2, (4, 51, digest("c"))), 0)  # it moved
        self.assertIsNone(self.page(50))
        self.assertEqual(self.page(51), ("two", 4, digest("c")))

    def test_withdrawn(self):
        self.host.feed(module(1, b"one") + hints(1, (0, 50, digest("a") * 3)), 0)
        self.host.feed(message(channel.WITHDRAWN, number(1, 1) + block(2, number(1, 1) + number(2, 2))), 0)
        self.assertEqual([self.page(gfn) for gfn in (50, 51, 52)], [("one", 0, digest("a")), None, None])
        self.host.feed(message(channel.WITHDRAWN, number(1, 1)), 0)
        self.assertIsNone(self.page(50))
        self.assertEqual(self.host.report.modules, {})

    def test_another_session_is_not_heard(self):
        other = message(channel.REPORT_END, b"", struct.pack("<Q", 78))
        self.assertEqual(self.host.feed(other, 0), b"")
        self.assertEqual(self.host.report.ends, 0)

    def test_rubbish_is_an_error(self):
        good = module(1, b"one")
        for bad in (b"X" + good, good[:-1] + bytes([good[-1] ^ 1])):
            self.setUp()
            with self.assertRaises(channel.ProtocolError):
                self.host.feed(bad, 0)


class Compare(unittest.TestCase):
    """The walk's pages against what was reported."""

    def test_only_the_right_page_with_the_right_bytes_counts(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "file")
            pages = [os.urandom(agent.PAGE) for _ in range(4)]
            with open(path, "wb") as f:
                f.write(b"".join(pages))
            sums = [hashlib.sha256(page).digest() for page in pages]
            host = channel.Conversation()
            host.feed(KNOCK, 0)
            host.session = 77
            # Page 0 is right, page 1 has other bytes, at page 2's place is page 9, page 3 was not reported.
            host.feed(module(1, b"file") + hints(1, (0, 50, sums[0]), (1, 60, sums[0]), (9, 70, sums[2])), 0)
            found = {50: (path, 0), 60: (path, 1), 70: (path, 2), 80: (path, 3)}
            self.assertEqual(agent.compare(found, host.report), (1, 1))


GOOD = {"mapped_pages": 1000, "reported_pages": 990, "wrong_digests": 0, "idle_cpu_percent": 0.1,
        "idle_wakeups_per_minute": 1, "rss_pages": 100000, "rss_anon_kib": 8192, "rss_file_kib": 1, "hash_gib_s": 1.0,
        "sha_instructions": True, "new_program_ms": 5000, "refaults_with": 105, "refaults_without": 100}


class Judge(unittest.TestCase):
    """The bounds."""

    def failed(self, **changes):
        """Indices of the bounds that do not hold."""
        return [i for i, (holds, _wanted, _found) in enumerate(agent.judge({**GOOD, **changes})) if not holds]

    def test_all_hold_at_the_bound(self):
        self.assertEqual(self.failed(), [])

    def test_each_can_fail(self):
        self.assertEqual(self.failed(reported_pages=989), [0])
        self.assertEqual(self.failed(wrong_digests=1), [0])
        self.assertEqual(self.failed(mapped_pages=0, reported_pages=0), [0])
        self.assertEqual(self.failed(idle_cpu_percent=0.11), [1])
        self.assertEqual(self.failed(rss_anon_kib=8193), [2])
        self.assertEqual(self.failed(rss_pages=99999), [2])
        self.assertEqual(self.failed(hash_gib_s=0.99), [3])
        self.assertEqual(self.failed(new_program_ms=5001), [4])
        self.assertEqual(self.failed(new_program_ms=None), [4])
        self.assertEqual(self.failed(refaults_with=106), [5])

    def test_what_the_machine_has(self):
        self.assertEqual(self.failed(hash_gib_s=0.5, sha_instructions=False), [])
        self.assertEqual(self.failed(rss_pages=200000, rss_anon_kib=16384), [])
        self.assertEqual(self.failed(rss_pages=200000, rss_anon_kib=16385), [2])


class Classes(unittest.TestCase):
    """What a class saves against what it costs."""

    def test_each_phase_against_the_one_before(self):
        phases = [{"on": ["mapped"], "shared_kib": 4000, "revokes_per_hour": 100, "impossible": {}},
                  {"on": ["mapped", "cache"], "shared_kib": 12000, "revokes_per_hour": 500, "impossible": {}},
                  {"on": ["mapped", "cache", "kernel"], "shared_kib": 13000, "revokes_per_hour": 400, "impossible": {}}]
        found = classes.compare(phases)
        self.assertEqual([(c["class"], c["saved_kib"], c["revokes_per_hour"]) for c in found],
                         [("mapped", 4000, 100), ("cache", 8000, 400), ("kernel", 1000, -100)])
        self.assertEqual(found[1]["revokes_per_saved_page_hour"], 0.2)

    def test_pays_up_to_a_tenth_of_its_worth(self):
        # A GiB is worth 450 CPU seconds an hour, and a tenth of that buys 750,000 revokes.
        self.assertTrue(classes.judge("cache", 1 << 20, 750000)["pays"])
        self.assertFalse(classes.judge("cache", 1 << 20, 750001)["pays"])
        self.assertFalse(classes.judge("cache", 0, 0)["pays"])
        self.assertTrue(classes.judge("cache", 4, -3)["pays"])


if __name__ == "__main__":
    unittest.main()
