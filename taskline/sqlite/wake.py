"""Waking who waits for a change of the file, in this process or another.

Beside the file is a directory `<file>-wake` with one FIFO for each waiter. A
waiter makes its FIFO before it looks into the file; a writer, after its commit,
writes a byte to each FIFO that it finds. So either the waiter saw the change or
the writer saw the FIFO. With nobody waiting a writer pays for one `stat`.

Where FIFOs cannot be made, waiters look every 20 ms whether the file changed.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import math
import os
import select
import sqlite3
import threading
import weakref
import zlib
from collections.abc import Collection, Iterable
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from taskline.clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    from taskline.sqlite.database import Database

MESSAGES = "q"
"""Who waits for messages."""
OUTCOMES = "r"
"""Who waits for outcomes."""
LOCKS = "l"
"""Who waits for locks, whose names stand where else queues do."""

POLL = 0.02
"""Seconds between two looks at the file where there are no FIFOs."""

_SETTLED = 0.05
"""Seconds after which a directory's time of change tells later changes apart."""
_MANY = 16
"""A FIFO's name holds no more queues than this; it is then woken for all."""
_ATTEMPTS = 100
"""How often to make a FIFO whose directory others remove."""

_log = logging.getLogger("taskline.sqlite")


def wake_directory(path: str) -> str:
    """Where the FIFOs are of those who wait for this database."""
    return f"{path}-wake"


def _tag(queue: str) -> str:
    return f"{zlib.crc32(queue.encode()):08x}"


class _Ear(NamedTuple):
    """A FIFO as its name describes it: kind, process, number, and the queues it is for."""

    path: str
    kind: str
    tags: frozenset[str]


class Bell:
    """A writer's side: wakes the waiters of one file. Any thread may ring."""

    def __init__(self, path: str) -> None:
        self._directory = wake_directory(path)
        self._listing: tuple[int, list[_Ear]] = (-1, [])
        """The directory's time of change, and who was in it."""

    def ring(self, kind: str, queues: Iterable[str] | None = None) -> None:
        """Wake who waits for this kind, and for one of these queues. Call it after the commit.

        Never raises: who cannot be woken looks again within a second.
        """
        try:
            changed = os.stat(self._directory).st_mtime_ns
        except OSError:
            return
        listed, ears = self._listing
        if changed != listed:
            ears = self._list(changed)
        tags: set[str] | None = None
        for ear in ears:
            if ear.kind != kind:
                continue
            if ear.tags and queues is not None:
                tags = {_tag(queue) for queue in queues} if tags is None else tags
                if tags.isdisjoint(ear.tags):
                    continue
            _poke(ear.path)

    def _list(self, changed: int) -> list[_Ear]:
        # A FIFO that is made after this listing may leave the directory with the same
        # time of change while that is recent: such a listing is used only once.
        settled = SYSTEM_CLOCK.time() - changed / 1e9 > _SETTLED
        try:
            names = os.listdir(self._directory)
        except OSError:
            return []
        ears = []
        for name in names:
            kind, _, rest = name.partition("-")
            ears.append(
                _Ear(os.path.join(self._directory, name), kind, frozenset(rest.split("-")[2:]))
            )
        self._listing = (changed if settled else -1, ears)
        return ears


def _poke(path: str) -> None:
    # Opened each time: a descriptor that is kept may outlive its reader, and writing to it
    # would then kill a process that has SIGPIPE at its default.
    try:
        ear = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno == errno.ENXIO:  # Nobody reads it: its process was killed.
            _remove(path)
        return
    try:
        os.write(ear, b"!")
    except OSError:
        # Full: it has been woken already. Broken: it has just been closed.
        pass
    finally:
        os.close(ear)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        _log.warning("cannot remove %s: %s", path, error)


class Waiter:
    """The waiting side, for one thread at a time; `interrupt` and `close` may come from any."""

    def __init__(self, database: Database, kind: str) -> None:
        self._database = database
        self._kind = kind
        self._channel: _Fifo | _Poll | None = None
        self._interrupted = False
        self._lock = threading.Lock()
        self._busy = False
        """Whether a thread uses the channel; if so, it is that thread which closes it."""
        self._closed = False

    @property
    def polls(self) -> bool:
        """Whether this waiter had to do without a FIFO."""
        return isinstance(self._channel, _Poll)

    def listen(self, queues: Collection[str] = ()) -> None:
        """From now on changes count. Call it before looking at the file, then `wait`."""
        if self._enter():
            try:
                self._listen(queues)
            finally:
                self._leave()

    def _listen(self, queues: Collection[str]) -> None:
        if self._channel is None:
            directory = wake_directory(self._database.path)
            has_fifos = hasattr(os, "mkfifo")
            self._channel = _Fifo(directory, self._kind) if has_fifos else _Poll(self._database)
        try:
            self._channel.listen(queues)
        except OSError as error:
            self._channel = _Poll(self._database)
            _log.warning("no FIFO for %s (%s): polling instead", self._database.path, error)

    def wait(self, seconds: float) -> None:
        """Return at a change since `listen`, at `interrupt`, or after `seconds`."""
        if self._enter():
            try:
                if self._channel is not None and not self._interrupted:
                    self._channel.wait(seconds)
            finally:
                self._leave()

    def interrupt(self) -> None:
        """Make the `wait` in another thread, or the next one, return early."""
        self._interrupted = True
        channel = self._channel
        if channel is not None:
            channel.wake()

    def interrupted(self) -> bool:
        """Whether `interrupt` was called since this was last asked."""
        if self._interrupted:
            self._interrupted = False
            return True
        return False

    def close(self) -> None:
        with self._lock:
            self._closed = True
            busy = self._busy
        if self._channel is not None:
            if busy:
                self._channel.wake()
            else:
                self._channel.close()

    def _enter(self) -> bool:
        with self._lock:
            self._busy = not self._closed
            return self._busy

    def _leave(self) -> None:
        with self._lock:
            self._busy = False
            closed = self._closed
        if closed and self._channel is not None:
            self._channel.close()


class _Fifo:
    """A FIFO in the wake directory, named after what it is to be woken for."""

    def __init__(self, directory: str, kind: str) -> None:
        self._directory = directory
        self._kind = kind
        self._queues: frozenset[str] | None = None
        self._path = ""
        self._fd = -1
        self._poll = select.poll()
        _fifos.add(self)

    def listen(self, queues: Collection[str]) -> None:
        wanted = frozenset(queues)
        if wanted == self._queues and os.path.exists(self._path):
            return
        self.close()
        tags = sorted(map(_tag, wanted)) if len(wanted) <= _MANY else []
        name = "-".join([self._kind, str(os.getpid()), str(next(_numbers)), *tags])
        self._path = os.path.join(self._directory, name)
        self._fd = self._make()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._queues = wanted

    def _make(self) -> int:
        # It gets its name once it has a reader: a writer takes one without for a dead one's.
        nameless = os.path.join(self._directory, f".{os.getpid()}-{next(_numbers)}")
        for attempt in range(_ATTEMPTS):
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self._directory)
                os.mkfifo(nameless)
                break
            except FileNotFoundError:
                # The last waiter may have removed the directory in between.
                if attempt == _ATTEMPTS - 1:
                    raise
        try:
            fd = os.open(nameless, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            os.rename(nameless, self._path)
        except BaseException:
            _remove(nameless)
            raise
        return fd

    def wait(self, seconds: float) -> None:
        if self._poll.poll(math.ceil(max(seconds, 0) * 1000)):
            os.read(self._fd, 65536)

    def wake(self) -> None:
        _poke(self._path)

    def close(self) -> None:
        if self._fd < 0:
            return
        self.remove()
        os.close(self._fd)
        self._fd = -1
        self._queues = None

    def remove(self) -> None:
        """Take the FIFO away, and with the last one the directory."""
        if self._fd >= 0:
            _remove(self._path)
            # It is not empty while others wait.
            with contextlib.suppress(OSError):
                os.rmdir(self._directory)

    def abandon(self) -> None:
        """In a forked child: the FIFO is the parent's."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._queues = None


class _Poll:
    """Looks at the file's version again and again."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection = database.own()
        self._version = self._look()
        self._woken = threading.Event()

    def _look(self) -> int:
        try:
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.OperationalError:
            # Busy or worse: the caller looks into the file in any case, and tells it better.
            return -1

    def listen(self, queues: Collection[str]) -> None:
        self._version = self._look()

    def wait(self, seconds: float) -> None:
        until = SYSTEM_CLOCK.monotonic() + seconds
        while self._look() == self._version:
            left = until - SYSTEM_CLOCK.monotonic()
            if left <= 0 or self._woken.wait(min(left, POLL)):
                break
        self._woken.clear()

    def wake(self) -> None:
        self._woken.set()

    def close(self) -> None:
        self._database.disown(self._connection)


_numbers = count(1)
_fifos: weakref.WeakSet[_Fifo] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for fifo in list(_fifos):
        fifo.abandon()


def _at_exit() -> None:
    for fifo in list(_fifos):
        fifo.remove()


atexit.register(_at_exit)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
