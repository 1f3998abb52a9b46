"""One connection to a broker: what all kinds of kombu transports have in common.

A link is used by one thread at a time. What fails closes it, and raises
`TransportError`; whoever uses it opens another.
"""

from __future__ import annotations

import contextlib
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from taskline.errors import TransportError
from taskline.transports.kombu.location import Location

if TYPE_CHECKING:
    from kombu.connection import Connection

    from taskline.clock import Clock
    from taskline.redis.interrupt import Interrupt

OWN = "application/x-taskline"
"""The content type of Taskline's own messages."""
INTERNAL = "taskline."
"""Begins the names of queues and exchanges that are not a user's."""


class Parcel(NamedTuple):
    """A message on its way to a queue of the broker."""

    queue: str
    """Its name at the broker."""
    body: bytes
    headers: dict[str, Any]
    priority: int | None = None
    """As kombu's transport has it."""
    delay: float = 0.0
    """Seconds."""
    content_type: str = OWN
    content_encoding: str = "binary"
    properties: dict[str, Any] = {}
    reply: bool = False
    """The queue is another's, who may have gone: it is not made, and nobody is told."""


class Taken(NamedTuple):
    """A message that the broker handed over."""

    queue: str
    """Its name at the broker."""
    tag: Any
    """What acknowledges it, on this link alone."""
    body: bytes
    headers: dict[str, Any]
    content_type: str
    content_encoding: str
    properties: dict[str, Any]
    redelivered: int
    """How often it was handed over before, as far as the broker tells."""
    counted: bool
    """Whether that is a number; else it is 1 for any."""


class Link(ABC):
    """See the module's docstring. Names of queues are those at the broker."""

    def __init__(self, location: Location, clock: Clock, connection: Connection) -> None:
        self.location = location
        self.clock = clock
        self.connection = connection
        self.opened = False
        self.product = self.version = ""
        self._errors: tuple[type[BaseException], ...] = (
            *connection.connection_errors,
            *connection.channel_errors,
            OSError,
        )

    @contextlib.contextmanager
    def talking(self) -> Iterator[None]:
        """Around all that talks to the broker: opens the link, closes it when something fails."""
        try:
            if not self.opened:
                self.connection.connect()
                self.open()
                self.opened = True
            yield
        except TransportError:
            self.close()
            raise
        except Exception as error:
            self.close()
            if not isinstance(error, self._errors) and not self.is_theirs(error):
                raise
            raise TransportError(f"{self.location}: {_told(error)}") from error

    def is_theirs(self, error: Exception) -> bool:
        """Whether an exception that kombu does not list is the broker's or its driver's."""
        # py-amqp on a connection that was lost within a call.
        return isinstance(error, (AttributeError, TypeError)) and "NoneType" in str(error)

    def close(self) -> None:
        """Give the connection back. What was taken and not acknowledged is the broker's again."""
        self.opened = False
        with contextlib.suppress(Exception):
            self.connection.release()

    def drop(self) -> None:
        """Close without a word to a broker that may not answer."""
        self.opened = False
        with contextlib.suppress(Exception):
            self.connection.collect(socket_timeout=0.1)

    @abstractmethod
    def open(self) -> None:
        """Make channels on the connection, which is there."""

    @abstractmethod
    def declare(self, queue: str) -> None:
        """Make a queue for messages if it is not there."""

    @abstractmethod
    def publish(self, parcels: Sequence[Parcel]) -> None:
        """Return when the broker has stored all of them, as far as it tells; else raise."""

    @abstractmethod
    def get(self, queue: str, limit: int) -> list[Taken]:
        """What the queue has now, up to `limit`."""

    @abstractmethod
    def wait(self, queues: Sequence[str], seconds: float, interrupt: Interrupt) -> list[Taken]:
        """Wait for a message of these queues, at most `seconds` or until the interrupt is set."""

    @abstractmethod
    def ack(self, tags: Sequence[Any]) -> None:
        """Acknowledge; on return the broker has understood it, or an error was raised."""

    @abstractmethod
    def give_back(self, tags: Sequence[Any]) -> None:
        """Put back what was taken, as it was and where it was as far as the broker can."""

    def begin(self, tags: Sequence[Any], lease: float) -> None:
        """What was taken is held from now on."""

    @abstractmethod
    def beat(self, tags: Sequence[Any], lease: float) -> list[Any]:
        """Keep the link and what it holds alive; returns the tags that are not held any more."""

    @abstractmethod
    def count(self, queue: str) -> int:
        """How many messages the queue has ready; 0 if there is no such queue."""

    @abstractmethod
    def purge(self, queue: str) -> int:
        """Delete what the queue has ready; returns how many."""

    @abstractmethod
    def purge_delayed(self, queue: str) -> int:
        """Delete what waits for its time to go to this queue; returns how many."""

    def check(self, queue: str) -> None:
        """Raise if the broker cannot be written to."""
        self.declare(queue)

    def upkeep(self) -> None:
        """What has to be done about once a second."""

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Be the only one in here under this name, as far as the broker can tell."""
        yield


def _told(error: BaseException) -> str:
    """What an exception says, on one line."""
    if isinstance(error, (socket.timeout, TimeoutError)):
        return "the broker does not answer in time"
    # py-amqp begins with the class and method of AMQP, which are none for a login.
    text = " ".join(str(error).split()).removeprefix("(0, 0): ")
    return text[:300] or type(error).__name__
