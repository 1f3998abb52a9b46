"""A transport made of a `Broker` written for Django Q."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import ConfigurationError, TransportError
from taskline.registry import Spec, options_of
from taskline.transports.base import QueueStats
from taskline_contrib.guest import DEAD, GuestTransport, load, told
from taskline_contrib.text import from_text, to_text

if TYPE_CHECKING:
    from typing_extensions import Self


class DjangoQTransport(GuestTransport):
    """One broker object for each queue and thread, made as Django Q does: `Broker(list_key=queue)`.

    The messages are frames as text. A broker without receipts, one that gives no id with
    a message, loses what a worker holds when that dies: it is refused unless
    `receipts` is false.
    """

    scheme = "django_q"

    def __init__(
        self,
        broker: Callable[..., Any],
        clock: Clock = SYSTEM_CLOCK,
        *,
        receipts: bool = True,
        poll: float = 0.2,
    ) -> None:
        super().__init__(clock, poll=poll)
        self._make = broker
        self._receipts = receipts
        self._local = threading.local()

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """`django_q://package.module.MyBroker?receipts=true&poll=0.2`, or a mapping."""
        options = options_of(spec, "broker", receipts=_flag, poll=float)
        if not options.get("broker"):
            raise ConfigurationError(
                "the django_q broker needs the dotted path of a class: "
                "django_q://django_q.brokers.orm.ORM"
            )
        return cls(load("django_q", "broker", options.pop("broker")), clock, **options)

    def _put(self, queue: str, data: bytes) -> None:
        with told(f"enqueue to {queue}"):
            self._broker(queue).enqueue(to_text(data))

    def _take(self, queue: str, limit: int) -> Sequence[tuple[Any, bytes]]:
        broker = self._broker(queue)
        taken: list[tuple[Any, bytes]] = []
        while len(taken) < limit:
            with told(f"dequeue from {queue}"):
                found = broker.dequeue()
            if not found:
                break
            for key, task in [found] if isinstance(found, tuple) else found:
                data = task.encode() if isinstance(task, str) else bytes(task)
                taken.append((key, from_text(data)))
            if taken[-1][0] in (None, False, "") and self._receipts:
                self._refuse_loss(queue, taken)
            break
        return taken

    def _refuse_loss(self, queue: str, taken: Sequence[tuple[Any, bytes]]) -> None:
        for _, data in taken:
            self._put(queue, data)
        raise ConfigurationError(
            f"{_name(self._make)} has no receipts: what a worker holds is lost when it dies; "
            "take another broker, or accept that with receipts=false"
        )

    def _done(self, queue: str, context: Any) -> None:
        with told(f"acknowledge to {queue}"):
            self._broker(queue).acknowledge(context)

    def _failed(self, queue: str, context: Any) -> None:
        with told(f"fail to {queue}"):
            self._broker(queue).fail(context)

    def _left(self, queue: str, context: Any) -> None:
        """Django Q has no call for it: the message comes again after its setting `retry`."""

    def stats(self, queues: Sequence[str] | None = None) -> list[QueueStats]:
        found = []
        for name in sorted(queues or ()):
            with told(f"the size of {name}"):
                broker = self._broker(name)
                found.append(
                    QueueStats(
                        queue=name,
                        ready=broker.queue_size(),
                        delayed=None,
                        leased=broker.lock_size(),
                        dead=self._broker(name + DEAD).queue_size(),
                    )
                )
        return found

    def purge(self, queue: str) -> int:
        with told(f"purge of {queue}"):
            broker = self._broker(queue)
            count = broker.queue_size() or 0
            broker.purge_queue()
        return int(count)

    def ping(self) -> None:
        self._check_open()
        with told("ping"):
            answered = self._broker("default").ping()
        if not answered:
            raise TransportError(f"{_name(self._make)} does not answer a ping")

    def info(self) -> dict[str, Any]:
        with told("info"):
            version = self._broker("default").info()
        return {
            "transport": self.scheme,
            "address": _name(self._make),
            "version": str(version or ""),
        }

    def _broker(self, queue: str) -> Any:
        mine: dict[str, Any] | None = getattr(self._local, "brokers", None)
        if mine is None:
            mine = self._local.brokers = {}
        if queue not in mine:
            mine[queue] = self._make(list_key=queue)
        return mine[queue]

    def _shut(self) -> None:
        """Django Q's brokers have no call for it."""


def _name(made: Any) -> str:
    return f"{made.__module__}.{made.__qualname__}"


def _flag(text: str) -> bool:
    words = {"1": True, "true": True, "0": False, "false": False}
    if text.lower() not in words:
        raise ValueError("it is true or false")
    return words[text.lower()]
