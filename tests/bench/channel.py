# SPDX-License-Identifier: LGPL-2.1-or-later
"""A stand-in for the host on the guest channel (proto/PROTOCOL.md, part 1): hears an agent and keeps what it says.

Shares no code with the service. The port is a pseudo-terminal in raw mode, which an agent opens as it would open a
virtio-serial port. It is lossless, so a frame that is none is an error here and nothing to be skipped.
"""
import os
import pty
import secrets
import select
import struct
import threading
import time
import tty

MAGIC = b"PFG1"
HEADER = struct.Struct("<4sII")
MAX_PAYLOAD = 1048564
WINDOW = 8
DIGEST = 32

HELLO, ACK = 1, 2                                                        # bodies of HostMessage
SESSION, KNOCK, AGENT_HELLO, MODULE, HINTS, WITHDRAWN, REPORT_END = range(1, 8)  # fields of AgentMessage


class ProtocolError(Exception):
    """The agent said something that is not in the protocol."""


def _crc_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82f63b78 if value & 1 else 0)
        table.append(value)
    return table


CRC_TABLE = _crc_table()


def crc32c(data):
    """RFC 3720."""
    crc, table = 0xffffffff, CRC_TABLE
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xff]
    return crc ^ 0xffffffff


def frame(payload):
    """A payload with its header."""
    length = struct.pack("<I", len(payload))
    return MAGIC + length + struct.pack("<I", crc32c(length + payload)) + payload


def _read_varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7f) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def fields(data):
    """{number: [values]} of a protobuf message: integers, and bytes for what has a length."""
    found, at = {}, 0
    while at < len(data):
        key, at = _read_varint(data, at)
        if key & 7 == 0:
            value, at = _read_varint(data, at)
        elif key & 7 == 1:
            (value,) = struct.unpack_from("<Q", data, at)
            at += 8
        elif key & 7 == 2:
            size, at = _read_varint(data, at)
            value = data[at:at + size]
            if len(value) != size:
                raise ProtocolError("a field is longer than its message")
            at += size
        else:
            raise ProtocolError(f"a field has the wire type {key & 7}")
        found.setdefault(key >> 3, []).append(value)
    return found


def _varint(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7f | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def host_hello(session):
    """A frame."""
    body = b"\x09" + struct.pack("<Q", session) + b"\x10\x01\x18" + _varint(WINDOW)
    return frame(bytes([HELLO << 3 | 2, len(body)]) + body)


def ack(session, frames):
    """A frame."""
    body = b"\x09" + struct.pack("<Q", session) + b"\x10" + _varint(frames)
    return frame(bytes([ACK << 3 | 2, len(body)]) + body)


class Module:
    """A file as the agent declared it, and its pages {file page: (gfn, digest)}."""

    def __init__(self, message):
        self.build_id = message.get(2, [b""])[0]
        self.name = message.get(3, [b""])[0].decode()
        self.n_pages = message.get(4, [0])[0]
        self.pages = {}


class Report:
    """What the agent of a session has said so far. Not for use by two threads."""

    def __init__(self):
        self.hello = {}
        self.modules = {}      # by id
        self.at = {}           # gfn: (module id, file page)
        self.first_hint = {}   # name of a file: when its first hint came
        self.ends = 0          # reports that were completed

    def take(self, number, message, now):
        """A message, which came at that time."""
        if number == AGENT_HELLO:
            self.hello = message
        elif number == MODULE:
            self._drop(message.get(1, [0])[0])
            self.modules[message.get(1, [0])[0]] = Module(message)
        elif number == HINTS:
            self._hints(message, now)
        elif number == WITHDRAWN:
            self._withdrawn(message)
        elif number == REPORT_END:
            self.ends += 1

    def _drop(self, module_id):
        module = self.modules.pop(module_id, None)
        for page in list(module.pages) if module else ():
            self._forget(module_id, module, page)

    def _forget(self, module_id, module, page):
        gfn, _digest = module.pages.pop(page)
        if self.at.get(gfn) == (module_id, page):
            del self.at[gfn]

    def _hints(self, message, now):
        module_id = message.get(1, [0])[0]
        module = self.modules[module_id]
        self.first_hint.setdefault(module.name, now)
        for run in map(fields, message.get(2, [])):
            page, gfn, digests = run.get(1, [0])[0], run.get(2, [0])[0], run[3][0]
            if not digests or len(digests) % DIGEST:
                raise ProtocolError("a run's digests are not a multiple of 32 bytes")
            for i in range(len(digests) // DIGEST):
                self._hint(module_id, module, page + i, gfn + i, digests[i * DIGEST:(i + 1) * DIGEST])

    def _hint(self, module_id, module, page, gfn, digest):
        if page in module.pages:
            self._forget(module_id, module, page)
        if gfn in self.at:
            other, other_page = self.at[gfn]
            self._forget(other, self.modules[other], other_page)
        module.pages[page] = (gfn, digest)
        self.at[gfn] = (module_id, page)

    def _withdrawn(self, message):
        module_id = message.get(1, [0])[0]
        if 2 not in message:
            self._drop(module_id)
            return
        module = self.modules[module_id]
        for span in map(fields, message[2]):
            first = span.get(1, [0])[0]
            for page in range(first, first + span[2][0]):
                if page in module.pages:
                    self._forget(module_id, module, page)

    def page(self, gfn):
        """(module, file page, digest) of what is said to be there, or None."""
        found = self.at.get(gfn)
        if not found:
            return None
        module = self.modules[found[0]]
        return module, found[1], module.pages[found[1]][1]


class Conversation:
    """The host's side: bytes in, bytes out."""

    def __init__(self):
        self.session = 0
        self.report = Report()
        self.frames = 0
        self.bytes = 0
        self.buffer = bytearray()

    def feed(self, data, now):
        """Bytes came from the agent; what to answer."""
        self.buffer += data
        self.bytes += len(data)
        answer = b""
        while (payload := self._next()) is not None:
            answer = self._take(fields(payload), now) or answer
        return answer

    def _next(self):
        while self.buffer[:1] == b"\0":  # the zeros that an agent sends before it knocks again
            del self.buffer[:1]
        if len(self.buffer) < HEADER.size:
            return None
        magic, length, checksum = HEADER.unpack_from(self.buffer)
        if magic != MAGIC or not 1 <= length <= MAX_PAYLOAD:
            raise ProtocolError("no frame where one should begin")
        if len(self.buffer) < HEADER.size + length:
            return None
        payload = bytes(self.buffer[HEADER.size:HEADER.size + length])
        if crc32c(self.buffer[4:8] + payload) != checksum:
            raise ProtocolError("a frame's checksum is wrong")
        del self.buffer[:HEADER.size + length]
        return payload

    def _take(self, message, now):
        if KNOCK in message:
            self.session = secrets.randbits(63) + 1
            self.report = Report()
            self.frames = 0
            return host_hello(self.session)
        if message.get(SESSION) != [self.session] or not self.session:
            return b""
        self.frames += 1
        for number in (AGENT_HELLO, MODULE, HINTS, WITHDRAWN, REPORT_END):
            if number in message:
                self.report.take(number, fields(message[number][0]), now)
        return ack(self.session, self.frames)


class StandIn:
    """A pseudo-terminal with somebody at its other end, in a thread; close() ends both."""

    def __init__(self):
        self.master, self.slave = pty.openpty()  # the slave stays open, so that the master is never hung up
        tty.setraw(self.slave)
        self.path = os.ttyname(self.slave)
        self.changed = threading.Condition()
        self.conversation = Conversation()
        self.error = None
        self.wake_read, self.wake_write = os.pipe()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self):
        while True:
            ready, _, _ = select.select([self.master, self.wake_read], [], [])
            if self.wake_read in ready:
                return
            data = os.read(self.master, 65536)
            now = time.monotonic()
            with self.changed:
                try:
                    answer = self.conversation.feed(data, now)
                except (ProtocolError, LookupError, ValueError) as error:
                    self.error = error
                    self.changed.notify_all()
                    return
                self.changed.notify_all()
            while answer:
                answer = answer[os.write(self.master, answer):]

    def wait(self, condition, seconds):
        """Until condition(report) is true or time is up; its value. Raises what the agent did wrong."""
        with self.changed:
            value = self.changed.wait_for(lambda: self.error or condition(self.conversation.report), seconds)
            if self.error:
                raise ProtocolError(str(self.error))
            return value

    def look(self, what):
        """what(report), while it holds still."""
        with self.changed:
            return what(self.conversation.report)

    def close(self):
        """Hangs up."""
        os.write(self.wake_write, b"x")
        self.thread.join(10)
        for fd in (self.master, self.slave, self.wake_read, self.wake_write):
            os.close(fd)
