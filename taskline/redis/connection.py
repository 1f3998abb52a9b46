"""One connection to a Redis server: the protocol RESP, and nothing else.

Why not redis-py: docs/decisions/redis-connection.md.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
from collections.abc import Iterable
from typing import Any, TypeAlias

from taskline.errors import ConfigurationError
from taskline.redis.location import TLS, Location

CHUNK = 65536

Word: TypeAlias = "bytes | str | int | float"
Reply: TypeAlias = Any
"""bytes, int, None, a list of replies, or (only inside a list) a `ServerError`."""


class ServerError(Exception):
    """An error that the server answered with. `code` is its first word."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = text.partition(" ")[0]


class Push(list[Any]):
    """What the server sent without being asked, in RESP3."""


class Lost(Exception):
    """The connection broke, or could not be made; the message says how."""

    def __init__(self, reason: str, *, silent: bool = False) -> None:
        """`silent`: nothing was heard for the whole time-out."""
        super().__init__(reason)
        self.silent = silent


def lost(error: Exception, location: Location) -> Lost:
    """What an error of a socket means."""
    return Lost(_reason(error, location), silent=isinstance(error, TimeoutError))


def pack(words: Iterable[Word]) -> bytes:
    """A command as it is sent."""
    parts: list[bytes] = []
    for word in words:
        if isinstance(word, str):
            word = word.encode()
        elif not isinstance(word, bytes):
            word = repr(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(word), word))
    return b"*%d\r\n%b" % (len(parts), b"".join(parts))


class Connection:
    """Not for several threads at a time. Any failure but a `ServerError` ends its use."""

    def __init__(self, location: Location, protocol: int = 2) -> None:
        """Connect and log in; raises `Lost` or `ServerError`."""
        self.location = location
        try:
            self._socket = _connect(location)
        except OSError as error:
            raise lost(error, location) from None
        self._buffer = b""
        self._at = 0
        """What comes before in the buffer was read."""
        try:
            self._log_in(protocol)
        except BaseException:
            self.close()
            raise

    def _log_in(self, protocol: int) -> None:
        location = self.location
        if location.password:
            user = [location.username] if location.username else []
            self.call(pack(["AUTH", *user, location.password]))
        if protocol == 3:
            self.call(pack(["HELLO", 3]))
        if location.database:
            self.call(pack(["SELECT", location.database]))

    def send(self, data: bytes) -> None:
        """Send packed commands."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise lost(_timed_out(error), self.location) from None

    def read(self) -> Reply:
        """The next answer; an error of the server is raised."""
        try:
            reply = self._read()
        except (OSError, ValueError) as error:
            raise lost(_timed_out(error), self.location) from None
        if isinstance(reply, ServerError):
            raise reply
        return reply

    def call(self, data: bytes) -> Reply:
        """Send one packed command and read its answer."""
        self.send(data)
        return self.read()

    def fileno(self) -> int:
        """For `select`."""
        return self._socket.fileno()

    @property
    def pending(self) -> bool:
        """Whether an answer can be read at once."""
        if self._at < len(self._buffer):
            return True
        try:
            if isinstance(self._socket, ssl.SSLSocket):
                self._socket.setblocking(False)
                try:
                    self._buffer = self._socket.recv(CHUNK)
                finally:
                    self._socket.settimeout(self.location.timeout)
            else:
                self._buffer = self._socket.recv(CHUNK, socket.MSG_DONTWAIT)
        except (OSError, ValueError):
            return False
        self._at = 0
        return bool(self._buffer)

    @property
    def ended(self) -> bool:
        """Whether the server has closed it; asked while no answer is due."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0)) and not self.pending

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def _receive(self) -> bytes:
        data = self._socket.recv(CHUNK)
        if not data:
            raise ConnectionResetError("closed by the server")
        return data

    def _line(self) -> bytes:
        end = self._buffer.find(b"\r\n", self._at)
        while end < 0:
            self._buffer = self._buffer[self._at :] + self._receive()
            self._at = 0
            end = self._buffer.find(b"\r\n")
        line = self._buffer[self._at : end]
        self._at = end + 2
        return line

    def _bytes(self, size: int) -> bytes:
        """So many bytes, and the end of the line, which is dropped."""
        end = self._at + size
        missing = end + 2 - len(self._buffer)
        if missing > 0:
            parts = [self._buffer[self._at :]]
            while missing > 0:
                parts.append(self._receive())
                missing -= len(parts[-1])
            self._buffer = b"".join(parts)
            self._at, end = 0, size
        data = self._buffer[self._at : end]
        self._at = end + 2
        return data

    def _read(self) -> Reply:
        line = self._line()
        kind, rest = (line[0], line[1:]) if line else (0, b"")
        if kind == 36:  # $ bulk string
            size = int(rest)
            return None if size < 0 else self._bytes(size)
        if kind == 58:  # : integer
            return int(rest)
        if kind == 43:  # + simple string
            return rest
        if kind in b"*~":  # array, set
            count = int(rest)
            return None if count < 0 else [self._read() for _ in range(count)]
        if kind == 62:  # > push
            return Push(self._read() for _ in range(int(rest)))
        if kind == 45:  # - error
            return ServerError(rest.decode(errors="replace"))
        if kind == 95:  # _ null
            return None
        if kind == 37:  # % map, as a flat list
            return [self._read() for _ in range(2 * int(rest))]
        if kind in b",#(":  # double, boolean, big number
            return rest
        raise ValueError(f"answered with {line[:40]!r}, which is not Redis")


def _timed_out(error: Exception) -> Exception:
    """The kernel says of a socket's own time-out that it would block."""
    return TimeoutError() if isinstance(error, BlockingIOError) else error


def _keep_time(made: socket.socket, seconds: float) -> None:
    """Let the kernel end calls that take longer, which saves a call of poll(2) before each."""
    whole, part = divmod(max(seconds, 0.001), 1.0)
    span = struct.pack("@ll", int(whole), int(part * 1e6))
    made.settimeout(None)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, span)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, span)


def _connect(location: Location) -> socket.socket:
    if location.path:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.settimeout(location.timeout)
        try:
            made.connect(location.path)
        except OSError:
            made.close()
            raise
        _keep_time(made, location.timeout)
        return made
    made = socket.create_connection((location.host, location.port), location.timeout)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if location.tls is None:
        _keep_time(made, location.timeout)
        return made
    try:
        return _context(location.tls).wrap_socket(made, server_hostname=location.host)
    except BaseException:
        made.close()
        raise


def _context(tls: TLS) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        if tls.cert:
            context.load_cert_chain(tls.cert, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"the TLS files {tls.ca or ''} {tls.cert or ''} cannot be read: {error}"
        ) from None
    context.check_hostname = tls.verify == "full"
    if tls.verify == "none":
        context.verify_mode = ssl.CERT_NONE
    return context


def _reason(error: Exception, location: Location) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {location.timeout:g} s"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error)
