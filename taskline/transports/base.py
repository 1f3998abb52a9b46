"""The seam between the core and whatever carries messages.

A transport stores messages and hands them over under leases. It never imports
the app or the worker, never decodes a frame, and reads the time from its clock
or its server only. Every call that names deliveries takes a batch and answers
with those it no longer held: their lease ended and someone else has them, or
the message is gone.

Threads: any thread may call `send` and the calls for people (stats, peek, …).
`receive`, `ack`, `release`, `replace`, `extend` and `bury` are called by one
thread at a time, the worker's I/O thread. `interrupt` may come from any thread.
No transport object is used across a fork; `close` ends its use.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import ConfigurationError, NotSupported
from taskline.message import DeadLetter, Delivery, Message, Outcome

if TYPE_CHECKING:
    from typing_extensions import Self

    from taskline.backends.base import Backend
    from taskline.registry import Spec


class Capabilities(msgspec.Struct, frozen=True):
    """What a transport has natively. The core asks this, never for a type."""

    delay: bool = True
    """Holds a message until its `eta`."""
    priority: bool = True
    """Hands over higher priorities first within a queue."""
    ordering: bool = True
    """First in, first out per queue and priority, for one consumer."""
    fencing: bool = True
    """Refuses receipts of an ended lease."""
    blocking: bool = True
    """`receive` is woken by a send; it does not poll."""
    peek: bool = True
    """Shows messages without handing them over."""
    delete: bool = True
    """Removes a waiting message by id."""
    idempotent: bool = True
    """A second send of the id of a message that is still stored changes nothing."""
    durable: bool = True
    """Messages survive the death of every process of ours."""
    outbox: str = ""
    """The argument of `app.batch` that brings a transaction of the user's own, for
    `send_within`: `connection` or `session`. Empty where there is no such thing."""
    leases: bool = True
    """Each delivery has a lease of its own, which ends by itself or by `recover`. Without, what
    is handed over is held until its holder's connection ends; then the broker hands it back."""
    shared: bool = True
    """Every connection may take every message that is ready. False: a message waits for the
    connection to which its part of the queue belongs, as long as that one asks for messages."""
    random_access: bool = True
    """Knows each message by what it waits for: counts are exact, and a purge finds what is
    delayed. False: `ready` is all that is not done, about, and a purge leaves what is delayed."""
    any_name: bool = True
    """A queue may have any name; else `send` and `receive` refuse some, and say which."""
    inherits: bool = False
    """What a dead process held stays its own until somebody is in its place: the process that
    replaces it at once is to `inherit`, and nobody needs to `recover`."""


class QueueStats(msgspec.Struct, kw_only=True):
    """The messages of a queue by what they wait for. None where it cannot be known."""

    queue: str
    ready: int | None = 0
    delayed: int | None = 0
    leased: int | None = 0
    dead: int | None = 0
    oldest: float | None = None
    """Age in seconds of the oldest ready message."""


class StoredMessage(msgspec.Struct, kw_only=True):
    """A message as `peek` shows it."""

    id: str
    queue: str
    state: str
    """`ready`, `delayed` or `leased`."""
    due: float | None = None
    """Unix seconds: the eta of a delayed message, the lease's end of a leased one."""
    deliveries: int = 0
    frame: bytes = b""


class Transport(ABC):
    """Carries messages. See the module's docstring for who may call what."""

    scheme: ClassVar[str]
    capabilities: Capabilities = Capabilities()
    ahead: int = 1000
    """The most brief messages that a process holds unstarted, where `prefetch` does not say: as
    many as may be asked for at once without keeping the broker, or other workers, waiting."""

    distributes: ClassVar[bool] = False
    """Whether `from_spec` takes the URLs of several nodes."""

    newest_revocation: int | None = None
    """Cursor of the newest revocation, as the last `receive` found it when it handed over.

    Of a transport that `shares` its store with the backend, which need then not be
    asked each time; None where it is not known.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self.clock = clock

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """Open one for a URL or a connector mapping, or several URLs where it distributes.

        Raises `ConfigurationError` for what it does not understand.
        """
        raise ConfigurationError(f"{cls.__name__} is opened from Python, not by a URL or mapping")

    @abstractmethod
    def send(self, messages: Sequence[Message]) -> None:
        """Store all messages, or none where the store can do that, or raise `TransportError`.

        A message whose `header.eta` is in the future is not handed over before.
        Sending an id that is still stored changes nothing.
        """

    def begin_send(self, messages: Sequence[Message]) -> Callable[[], None]:
        """Begin what `send` does; what it returns waits for the end of it, and raises as `send`.

        For many messages in a row, a thousand in each call. Where several such calls can be under
        way at once, this returns before the broker has answered; elsewhere all is done here.
        """
        self.send(messages)
        return _nothing

    def send_within(self, transaction: Any, messages: Sequence[Message]) -> None:
        """As `send`, as a part of a transaction that the caller has open and will commit.

        `transaction` is what `capabilities.outbox` says. Workers are woken when it was
        committed, or look by themselves within a second. Without messages it only checks
        what can be told before. Raises `ConfigurationError` for a transaction that is not
        open, or not with this broker, and `NotSupported` where there is no such thing.
        """
        raise NotSupported(
            f"the {self.scheme} transport cannot send within a transaction of yours: use "
            "sqlite:///file.db, with connection=, or mongodb://, with session="
        )

    def prepare(self, queues: Sequence[str], lease: float, consumer: str) -> None:
        """Get ready for the first `receive` with these arguments: worker processes call it first.

        Raises `ConfigurationError` where no try can succeed, for a name that a queue cannot
        have, say; that ends the worker with a line of its own.
        """

    @abstractmethod
    def receive(
        self, queues: Sequence[str], limit: int, lease: float, wait: float, consumer: str
    ) -> list[Delivery]:
        """Hand over up to `limit` due messages, each under a lease of `lease` seconds.

        The queues are served in the given order. Waits up to `wait` seconds for
        the first message, returns at once with what is there otherwise, and
        returns an empty list when the time is over or `interrupt` was called.
        `consumer` names the holder, for `recover`.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """Make a `receive` that waits in another thread, or the next one, return early."""

    @abstractmethod
    def ack(
        self, deliveries: Sequence[Delivery], outcomes: Sequence[Outcome] = ()
    ) -> list[Delivery]:
        """Done: remove these messages.

        `outcomes` is only given when `shares` answered true for the backend: they
        are stored in the same step, each only if its delivery (same id) was held.
        """

    def speak(self, protocol: str, queues: Collection[str] | None = None) -> None:
        """Carry messages as this protocol has them (the setting `protocol`); called before use.

        `queues`: only to and from these. Raises `ConfigurationError` where that cannot be.
        """
        raise ConfigurationError(
            f"protocol={protocol!r} needs a broker that Celery uses too, such as"
            f" kombu+amqp://… or kombu+redis://…, not {self.scheme}"
        )

    def shares(self, backend: Backend) -> bool:
        """Whether `ack` can store outcomes for this backend in the same step."""
        return False

    @abstractmethod
    def release(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> list[Delivery]:
        """Give back unstarted messages, to the place they had, due in `delay` seconds."""

    @abstractmethod
    def replace(self, pairs: Sequence[tuple[Delivery, Message]]) -> list[Delivery]:
        """In one step each: acknowledge the delivery and store its successor.

        The successor has the same id (a further attempt); `deliveries` goes on
        counting, `lost` starts at zero. A lost delivery's successor is not stored.
        """

    @abstractmethod
    def extend(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]:
        """Renew: each lease ends `lease` seconds from now."""

    @abstractmethod
    def bury(self, burials: Sequence[tuple[Delivery, DeadLetter]]) -> list[Delivery]:
        """Move each message to the dead letters, in one step each."""

    @abstractmethod
    def recover(self, consumer: str, started: Collection[str]) -> int:
        """Hand back at once all that a dead consumer held; returns how many.

        Messages whose ids are in `started` count as lost once more (`lost` + 1);
        the others were never begun and do not.
        """

    def recover_all(self, dead: Mapping[str, Collection[str]]) -> int:
        """`recover` several dead consumers, each given with the messages that it ran."""
        return sum(self.recover(consumer, started) for consumer, started in dead.items())

    def inherit(self, queues: Sequence[str], place: str, started: Collection[str]) -> int:
        """Be in the place of a dead consumer, and have what it held; returns how much that was.

        Before `prepare` for the same `queues`, in a new process, where the transport `inherits`.
        As `recover`, but that the messages are ready here. `place` is the dead one's name or,
        where that one was in a place itself, the name of the first that was there. A call that
        raised may be repeated.
        """
        return self.recover(place, started)

    @abstractmethod
    def stats(self, queues: Sequence[str] | None = None) -> list[QueueStats]:
        """Counts for these queues, or for all that the transport knows, sorted by name."""

    @abstractmethod
    def peek(self, queue: str, limit: int = 10, offset: int = 0) -> list[StoredMessage]:
        """Messages of a queue in the order in which they will be handed over."""

    @abstractmethod
    def purge(self, queue: str) -> int:
        """Delete all messages of a queue that nobody holds; returns how many. Dead letters stay."""

    @abstractmethod
    def delete(self, ids: Sequence[str]) -> list[str]:
        """Delete these messages where nobody holds them; returns the ids deleted."""

    @abstractmethod
    def dead_letters(
        self, queue: str | None = None, limit: int = 100, offset: int = 0
    ) -> list[DeadLetter]:
        """The dead letters of one queue or of all, newest first."""

    @abstractmethod
    def dead_letter(self, id: str) -> DeadLetter | None:
        """The dead letter of this id."""

    @abstractmethod
    def requeue(self, messages: Sequence[Message]) -> list[str]:
        """In one step each: remove the dead letter of the message's id and send the message.

        Returns the ids that had a dead letter; the others are not sent.
        `deliveries` goes on counting.
        """

    @abstractmethod
    def purge_dead(self, ids: Sequence[str]) -> int:
        """Delete the dead letters of these ids; returns how many there were."""

    @abstractmethod
    def ping(self) -> None:
        """Return if the broker answers and can be written to; raise `TransportError` if not."""

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """What people want to know of the broker: `transport`, `address`, `version`, ….

        Never a password.
        """

    def parts(self) -> dict[str, Transport]:
        """The brokers behind it by name, for people who ask after each of them."""
        return {"broker": self}

    def maintain(self) -> None:
        """Background upkeep, called by idle workers about once a second."""

    @abstractmethod
    def close(self) -> None:
        """Give back connections and files. Idempotent; safe to call from any thread."""

    def _refuse(self, what: str) -> NotSupported:
        return NotSupported(f"the {self.scheme} transport cannot {what}")


def _nothing() -> None:
    """Wait for what is done already."""
