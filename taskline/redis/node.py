"""One Redis server as it is used: a few connections, scripts, and what to do when it fails."""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Iterable, Sequence

from taskline.clock import Clock
from taskline.errors import TransportError
from taskline.redis.connection import Connection, Lost, Reply, ServerError, Word, pack
from taskline.redis.discovery import connect
from taskline.redis.location import Location
from taskline.redis.script import Script

log = logging.getLogger("taskline.redis")

BACKOFF_FIRST, BACKOFF_MAX = 0.05, 1.0
OLDEST = (7, 0)
"""The oldest version of Redis that has all commands in use."""

BUSY = {
    "LOADING",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "BUSY",
    "READONLY",
    "UNBLOCKED",
    "MOVED",
    "ASK",
}
"""Answers of a server that may answer otherwise soon."""
ELSEWHERE = {"READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "MOVED", "UNBLOCKED"}
"""Answers of a server that may not be the one any more: it is looked for again."""
REMEDIES = {
    "OOM": "maxmemory is reached: let workers drain the queues, or raise maxmemory",
    "MISCONF": "the server cannot write to its disk: free space, or see the server's log",
    "NOAUTH": "the server wants a password: redis://user:password@host",
    "WRONGPASS": "user or password is wrong",
    "NOPERM": "the user may not do this: docs/transports/redis.md lists what it needs",
    "WRONGTYPE": "a key is used for something else: give the app a namespace of its own",
    "READONLY": "it is a replica, which cannot be written to: name the master",
    "NOREPLICAS": "the server has too few replicas to accept writes",
}
LASTING = {"OOM", "NOAUTH", "WRONGPASS", "NOPERM", "WRONGTYPE", "ERR"}


ONE_OUTAGE = 10.0
"""Seconds for which losses of connections to one server are told once in a process."""
_told: dict[str, float] = {}


class Node:
    """Any thread may use it. `error` is the class of the errors that it raises."""

    def __init__(
        self, location: Location, clock: Clock, error: type[TransportError] = TransportError
    ) -> None:
        self.location = location
        self.clock = clock
        self.tag = b"{%s}" % location.namespace.encode()
        self._error = error
        self._idle: deque[Connection] = deque()
        self._closed = False
        self._trouble = ""

    def run(
        self,
        script: Script,
        *args: Word,
        patience: float = 0.0,
        again: Sequence[Word] | None = None,
    ) -> Reply:
        """The answer of a script; see `call`. `again` are its arguments in further attempts."""
        repeated = None if again is None else script.packed(self.tag, again)
        return self.call(script.packed(self.tag, args), script, patience, repeated)

    def command(self, *words: Word, patience: float = 0.0) -> Reply:
        """The answer of a command; see `call`."""
        return self.call(pack(words), None, patience)

    def call(
        self,
        data: bytes,
        script: Script | None = None,
        patience: float = 0.0,
        again: bytes | None = None,
    ) -> Reply:
        """Send a packed command, answer with its reply.

        On a lost connection it is sent once more at once (not to a server that was
        silent for the whole time-out), and with pauses that grow for `patience`
        seconds; then `TransportError` is raised.
        """
        until = None
        pause = BACKOFF_FIRST
        while True:
            try:
                return self.once(data, script)
            except (Lost, ServerError) as error:
                lasting = isinstance(error, ServerError) and error.code not in BUSY
                now = self.clock.monotonic()
                if until is None and not lasting:
                    until = now + patience
                    if isinstance(error, Lost) and not error.silent:
                        data = again or data
                        continue
                if lasting or until is None or now + pause > until:
                    raise self.translate(error) from None
            data = again or data
            self.clock.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, BACKOFF_MAX)

    def call_each(self, commands: Iterable[tuple[bytes, Script]], patience: float) -> None:
        """Call one after the other; the next is made while the server is at work on the last.

        They must be such that doing one twice does no harm. Their answers are not looked at.
        """
        flying: tuple[bytes, Script] | None = None
        connection: Connection | None = None
        try:
            for each in commands:
                if connection is not None and flying is not None:
                    done, flying = flying, None
                    connection = self._landed(connection, done, patience)
                try:
                    connection = connection or self._borrow()
                    connection.send(each[0])
                    flying = each
                except Lost:
                    if connection is not None:
                        connection.close()
                    connection = None
                    self.call(*each, patience)
            if connection is not None and flying is not None:
                done, flying = flying, None
                connection = self._landed(connection, done, patience)
        finally:
            if connection is not None and flying is None:
                self._idle.append(connection)
            elif connection is not None:
                connection.close()

    def _landed(
        self, connection: Connection, flown: tuple[bytes, Script], patience: float
    ) -> Connection | None:
        """The connection, once the answer to a command has come; else it is called anew."""
        try:
            connection.read()
            return connection
        except (Lost, ServerError):
            connection.close()
        self.call(*flown, patience)
        return None

    def _borrow(self) -> Connection:
        try:
            return self._idle.pop()
        except IndexError:
            return self.connect()

    def once(self, data: bytes, script: Script | None = None) -> Reply:
        """One attempt; raises `Lost` or `ServerError`."""
        connection = self._borrow()
        try:
            try:
                reply = connection.call(data)
            except ServerError as error:
                if error.code != "NOSCRIPT" or script is None:
                    raise
                reply = connection.call(data.replace(*_by_source(script), 1))
        except Lost as error:
            connection.close()
            self._note(str(error))
            raise
        except ServerError as error:
            if error.code in ELSEWHERE:
                connection.close()
                self.disconnect()
            else:
                self._idle.append(connection)
            raise
        self._idle.append(connection)
        if self._trouble:
            self._calm()
        return reply

    def connect(self, protocol: int = 2) -> Connection:
        """A connection of the caller's own; raises `Lost` or `ServerError`."""
        if self._closed:
            raise self._error(f"the connection to {self.location} was closed", retryable=False)
        try:
            return connect(self.location, protocol)
        except Lost as error:
            self._trouble = ""
            raise Lost(f"cannot connect: {error}", silent=error.silent) from None

    def _note(self, reason: str) -> None:
        # The others of a server that went away are of no use either.
        self.disconnect()
        self._trouble = self._trouble or reason

    def _calm(self) -> None:
        """The connection was made anew at once. Longer troubles are told by those who see them."""
        trouble, self._trouble = self._trouble, ""
        if self.clock.monotonic() < _told.get(str(self.location), 0.0) + ONE_OUTAGE:
            return
        self._tell()
        log.warning("the connection to %s was lost: %s", self.location, trouble)
        log.info("connected to %s again", self.location)

    def _tell(self) -> None:
        _told[str(self.location)] = self.clock.monotonic()

    def translate(self, error: Exception) -> TransportError:
        """The error as callers see it: one line with the server's name and a remedy."""
        self._trouble = ""
        if isinstance(error, ServerError):
            remedy = REMEDIES.get(error.code)
            text = f"{remedy} ({error})" if remedy else str(error)
            return self._error(
                f"Redis at {self.location}: {text}", retryable=error.code not in LASTING
            )
        self._tell()
        return self._error(f"Redis at {self.location}: {error}")

    def check(self) -> dict[str, str]:
        """Its INFO, if it can serve us; raises `TransportError` if not."""
        patience = 0.0
        info = parse_info(self.command("INFO", "everything", patience=patience))
        version = info.get("valkey_version") or info.get("redis_version", "0")
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
            raise self._error(
                f"Redis at {self.location} is {version}: Taskline needs 7.0 or newer, or Valkey",
                retryable=False,
            )
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            raise self._error(
                f"Redis at {self.location} deletes data when its memory is full "
                f"(maxmemory-policy {policy}): CONFIG SET maxmemory-policy noeviction",
                retryable=False,
            )
        self.command("SET", self.tag + b"p", 1, "PX", 1000, patience=patience)
        return info

    def about(self) -> dict[str, str | int]:
        """What people want to know of it."""
        info = parse_info(self.command("INFO", "everything"))
        return {
            "version": info.get("valkey_version") or info.get("redis_version", ""),
            "server": "Valkey" if "valkey_version" in info else "Redis",
            "mode": info.get("redis_mode", ""),
            "role": info.get("role", ""),
            "memory": int(info.get("used_memory", 0)),
            "maxmemory": int(info.get("maxmemory", 0)),
            "appendonly": "yes" if info.get("aof_enabled") == "1" else "no",
        }

    def disconnect(self) -> None:
        """Close the connections that nobody uses now; others are made when needed."""
        while True:
            try:
                self._idle.pop().close()
            except IndexError:
                return

    def close(self) -> None:
        """End its use."""
        self._closed = True
        self.disconnect()


def _by_source(script: Script) -> tuple[bytes, bytes]:
    """What to replace in a packed EVALSHA, and by what, so that it brings the script's text."""
    old = b"$7\r\nEVALSHA\r\n$40\r\n%b\r\n" % script.sha
    return old, b"$4\r\nEVAL\r\n$%d\r\n%b\r\n" % (len(script.source), script.source)


def parse_info(reply: bytes) -> dict[str, str]:
    """The lines of INFO by name."""
    pairs = (line.partition(":") for line in reply.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in pairs if colon}
