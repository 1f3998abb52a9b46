"""A transport made of a consumer and a producer written for Volley.

Volley itself need not be installed: what has the calls of its `BaseConsumer` and
`BaseProducer` (py-volley 1.x) is one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import ConfigurationError, TransportError
from taskline.registry import Spec, options_of
from taskline_contrib.guest import GuestTransport, load, told

if TYPE_CHECKING:
    from typing_extensions import Self

DELIVERED_WITHIN = 10.0
"""Seconds in which a producer that confirms by callback must have done so."""


class VolleyTransport(GuestTransport):
    """One consumer for each queue, for the I/O thread; one producer for each queue and thread.

    They are made as Volley makes them: `Consumer(queue_name=, host=, config=)`. The
    messages are frames, bytes, which a consumer gives back as it got them.
    """

    scheme = "volley"

    def __init__(
        self,
        consumer: Callable[..., Any],
        producer: Callable[..., Any],
        clock: Clock = SYSTEM_CLOCK,
        *,
        host: str | None = None,
        config: Mapping[str, Any] | None = None,
        poll: float = 0.2,
    ) -> None:
        super().__init__(clock, poll=poll)
        self._make_consumer = consumer
        self._make_producer = producer
        self._host = host
        self._config = dict(config or {})
        self._consumers: dict[str, Any] = {}
        self._local = threading.local()
        self._producers: list[Any] = []

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """A mapping with `consumer` and `producer`, dotted paths, and `host`, `config`, `poll`."""
        options = options_of(spec, "host", consumer=str, producer=str, config=_no_text, poll=float)
        for name in ("consumer", "producer"):
            if name not in options:
                raise ConfigurationError(
                    f"the volley broker needs {name!r}, the dotted path of a class: "
                    '{"type": "volley", "consumer": "plugin.MyConsumer", "producer": ...}'
                )
            options[name] = load("volley", name, options[name])
        return cls(options.pop("consumer"), options.pop("producer"), clock, **options)

    def _put(self, queue: str, data: bytes) -> None:
        producer = self._producer(queue)
        with told(f"the producer of {queue}"):
            if getattr(producer, "callback_delivery", False):
                stored = _confirmed(producer, queue, data)
            else:
                stored = producer.produce(queue_name=queue, message=data, message_context=None)
        if stored is False:
            raise TransportError(f"the producer of {queue} did not store the message")

    def _take(self, queue: str, limit: int) -> Sequence[tuple[Any, bytes]]:
        consumer = self._consumers.get(queue)
        taken: list[tuple[Any, bytes]] = []
        with told(f"the consumer of {queue}"):
            if consumer is None:
                consumer = self._consumers[queue] = self._make_consumer(**self._made_of(queue))
            while len(taken) < limit and (found := consumer.consume()) is not None:
                taken.append((found.message_context, _bytes(queue, found.message)))
        return taken

    def _done(self, queue: str, context: Any) -> None:
        consumer = self._consumers[queue]
        with told(f"on_success of the consumer of {queue}"):
            # It was called delete once.
            done = getattr(consumer, "on_success", None) or consumer.delete
            done(context)

    def _failed(self, queue: str, context: Any) -> None:
        """As Volley does once a message is in the dead-letter queue."""
        self._done(queue, context)

    def _left(self, queue: str, context: Any) -> None:
        with told(f"on_fail of the consumer of {queue}"):
            self._consumers[queue].on_fail(context)

    def purge(self, queue: str) -> int:
        """By consuming it to its end."""
        self._check_open()
        count = 0
        while taken := self._take(queue, 100):
            for context, _ in taken:
                self._done(queue, context)
            count += len(taken)
        return count

    def ping(self) -> None:
        """Volley's connectors have no such call: that one can be made is what can be told."""
        self._check_open()

    def info(self) -> dict[str, Any]:
        return {
            "transport": self.scheme,
            "address": self._host or _name(self._make_consumer),
            "version": "",
            "consumer": _name(self._make_consumer),
            "producer": _name(self._make_producer),
        }

    def _producer(self, queue: str) -> Any:
        mine: dict[str, Any] | None = getattr(self._local, "producers", None)
        if mine is None:
            mine = self._local.producers = {}
        if queue not in mine:
            with told(f"the producer of {queue}"):
                mine[queue] = self._make_producer(**self._made_of(queue))
            self._producers.append(mine[queue])
        return mine[queue]

    def _made_of(self, queue: str) -> dict[str, Any]:
        return {"queue_name": queue, "host": self._host, "config": dict(self._config)}

    def _shut(self) -> None:
        for each in [*self._consumers.values(), *self._producers]:
            with told("shutdown"):
                each.shutdown()


def _confirmed(producer: Any, queue: str, data: bytes) -> bool:
    """Produce, and wait for the callback that says what became of it."""
    outcome: list[bool] = []
    called = threading.Event()

    def tell(stored: bool) -> Callable[[Any], None]:
        def callback(_context: Any) -> None:
            outcome.append(stored)
            called.set()

        return callback

    producer.on_success, producer.on_fail = tell(True), tell(False)
    if producer.produce(queue_name=queue, message=data, message_context=None) is False:
        return False
    if not called.wait(DELIVERED_WITHIN):
        raise TransportError(
            f"the producer of {queue} did not confirm the message within {DELIVERED_WITHIN:g} s"
        )
    return outcome[0]


def _bytes(queue: str, message: Any) -> bytes:
    if isinstance(message, str):
        return message.encode()
    if isinstance(message, (bytes, bytearray, memoryview)):
        return bytes(message)
    raise TransportError(
        f"the consumer of {queue} gave {type(message).__name__}, not the bytes that were produced: "
        "leave it to Taskline to decode them",
        retryable=False,
    )


def _name(made: Any) -> str:
    return f"{made.__module__}.{made.__qualname__}"


def _no_text(text: str) -> Mapping[str, Any]:
    raise ValueError("it is a mapping, which a URL cannot have")
