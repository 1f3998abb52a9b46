"""RabbitMQ over AMQP 0-9-1, by kombu and py-amqp: publisher confirms, quorum queues, no polling.

Messages are taken with `basic.get`, as many in one go as there are and are wanted, so
that none is pushed to a worker that has no room for it. Consumers exist only while
`wait` has nothing to return. https://www.rabbitmq.com/docs/confirms
"""

from __future__ import annotations

import contextlib
import logging
import select
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from taskline.chunking import chunks
from taskline.errors import TransportError
from taskline.transports.kombu.delays import DUE, Delays
from taskline.transports.kombu.link import Link, Parcel, Taken
from taskline.transports.kombu.location import Location

if TYPE_CHECKING:
    from kombu.connection import Connection
    from kombu.entity import Queue

    from taskline.clock import Clock
    from taskline.redis.interrupt import Interrupt

log = logging.getLogger("taskline.kombu")

WINDOW = 500
"""Requests that are sent before their answers are read."""
LASTING = (403, 530, 540)
"""Reply codes that a repetition does not help: refused, not allowed, not implemented."""
CONSUMER_TIMEOUT = 365 * 86_400_000
"""Milliseconds for which a worker may hold a message, where a queue can tell RabbitMQ (3.12)."""


class AMQPLink(Link):
    """See the module's docstring, and `Link`."""

    def __init__(self, location: Location, clock: Clock, connection: Connection) -> None:
        super().__init__(location, clock, connection)
        self._channel: Any = None
        self._declared: set[str] = set()
        self._held: set[int] = set()
        """Delivery tags that are not acknowledged yet."""
        self._published = 0
        self._unconfirmed: dict[int, Parcel] = {}
        self._refused: list[Parcel] = []

    def open(self) -> None:
        self._channel = self.connection.channel()
        properties = self.connection.connection.server_properties
        self.version = str(properties.get("version", ""))
        self.product = str(properties.get("product", ""))
        self._numbers = tuple(int(part) for part in self.version.split(".")[:2] if part.isdigit())
        self._delays = Delays(self.connection, quorum=self._numbers >= (3, 10))
        self._sync()

    @contextlib.contextmanager
    def talking(self) -> Iterator[None]:
        try:
            with super().talking():
                yield
        except TransportError as error:
            code = getattr(error.__cause__, "code", None)
            if code in LASTING:
                error.retryable = False
            raise

    def is_theirs(self, error: Exception) -> bool:
        from amqp.exceptions import AMQPError

        return isinstance(error, AMQPError) or super().is_theirs(error)

    # Queues

    def _queue(self, name: str) -> Queue:
        from kombu.entity import Exchange, Queue

        arguments: dict[str, Any] = {}
        location = self.location
        if location.queue_type == "quorum":
            arguments["x-queue-type"] = "quorum"
            if self._numbers >= (4, 0):
                arguments["x-delivery-limit"] = -1  # Taskline counts, and keeps the message
        elif location.priorities and name not in location.bare:
            arguments["x-max-priority"] = location.priorities
        if self._numbers >= (3, 12) and arguments:
            arguments["x-consumer-timeout"] = CONSUMER_TIMEOUT
        return Queue(
            name, Exchange(DUE, "direct"), routing_key=name, queue_arguments=arguments or None
        )

    def declare(self, queue: str) -> None:
        """As the options say, or as it is if somebody else has made it otherwise."""
        from amqp.exceptions import PreconditionFailed

        if queue in self._declared:
            return
        with self.connection.channel() as channel:
            wanted = self._queue(queue).bind(channel)
            try:
                wanted.declare()
            except PreconditionFailed as error:
                log.info("queue %s is used as it is: %s", queue, error)
                wanted.queue_declare(passive=True)
                wanted.queue_bind()
        self._declared.add(queue)

    def count(self, queue: str) -> int:
        from amqp.exceptions import NotFound

        with self.connection.channel() as channel:
            try:
                return int(channel.queue_declare(queue, passive=True).message_count)
            except NotFound:
                return 0

    def purge(self, queue: str) -> int:
        from amqp.exceptions import NotFound

        with self.connection.channel() as channel:
            try:
                return int(channel.queue_purge(queue))
            except NotFound:
                return 0

    def purge_delayed(self, queue: str) -> int:
        return self._delays.purge(queue)

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """An exclusive queue is a lock that dies with its holder's connection."""
        from amqp.exceptions import ResourceLocked

        until = self.clock.monotonic() + 2 * self.location.timeout
        with self.connection.channel() as channel:
            while True:
                try:
                    channel.queue_declare(name, exclusive=True, auto_delete=False)
                    break
                except ResourceLocked:
                    if self.clock.monotonic() > until:
                        raise TransportError(
                            f"{self.location}: another process has been busy with {name} for"
                            f" {2 * self.location.timeout:g} s: try again"
                        ) from None
                    self.clock.sleep(0.01)
            try:
                yield
            finally:
                channel.queue_delete(name)

    # Sending

    def publish(self, parcels: Sequence[Parcel]) -> None:
        if not parcels:
            return
        if not self._published:
            self._listen()
        for some in chunks(parcels, WINDOW):
            self._publish(some)
        if self._refused:
            # Queues that were deleted after we made them: once more, with new ones.
            again, self._refused = self._refused, []
            self._declared.clear()
            self._publish(again)
        if self._refused:
            raise TransportError(f"{self.location}: no queue takes the message")

    def _listen(self) -> None:
        from kombu.messaging import Producer

        channel = self._channel
        channel.confirm_select()
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)
        channel.events["basic_return"].add(self._on_return)
        self._producer = Producer(channel, auto_declare=False)

    def _publish(self, parcels: Sequence[Parcel]) -> None:
        for parcel in parcels:
            if not parcel.reply:
                self.declare(parcel.queue)
            headers, exchange = parcel.headers, ""
            if parcel.delay > 0:
                exchange, bits = self._delays.route(parcel.delay)
                headers = {**headers, **bits}
            self._published += 1
            self._unconfirmed[self._published] = parcel
            self._producer.publish(
                parcel.body,
                routing_key=parcel.queue,
                exchange=exchange,
                headers=headers,
                priority=parcel.priority,
                content_type=parcel.content_type,
                content_encoding=parcel.content_encoding,
                delivery_mode=2,
                mandatory=not parcel.reply,
                **parcel.properties,
            )
        self._await_confirms()

    def _await_confirms(self) -> None:
        until = self.clock.monotonic() + self.location.timeout
        while self._unconfirmed:
            left = until - self.clock.monotonic()
            try:
                self.connection.drain_events(timeout=max(left, 0.001))
            except TimeoutError:
                if left <= 0:
                    raise TransportError(
                        f"{self.location}: the broker has not confirmed a message within"
                        f" {self.location.timeout:g} s: is it short of memory or disk?"
                    ) from None

    def _on_ack(self, tag: int, multiple: bool) -> None:
        if not multiple:
            self._unconfirmed.pop(tag, None)
            return
        for each in [each for each in self._unconfirmed if each <= tag]:
            del self._unconfirmed[each]

    def _on_nack(self, tag: int, multiple: bool) -> None:
        raise TransportError(f"{self.location}: the broker has refused a message: is a queue full?")

    def _on_return(self, error: Exception, exchange: str, routing_key: str, message: Any) -> None:
        """A message that no queue takes comes back, before it is confirmed."""
        first = next(iter(self._unconfirmed))
        for tag, parcel in self._unconfirmed.items():
            if parcel.queue == routing_key and parcel.body == message.body:
                first = tag
                break
        self._refused.append(self._unconfirmed[first])

    # Receiving

    def get(self, queue: str, limit: int) -> list[Taken]:
        channel = self._channel
        first = channel.basic_get(queue)
        if first is None:
            return []
        found = [self._taken(queue, first)]
        left = min(limit - 1, first.delivery_info["message_count"])
        while left > 0:
            asked = min(left, WINDOW)
            left -= asked
            answers = self._get_many(queue, asked)
            found += [self._taken(queue, each) for each in answers if each is not None]
        return found

    def _get_many(self, queue: str, number: int) -> list[Any]:
        """So many `basic.get` in one round trip; None for each that found nothing."""
        from amqp import spec

        channel = self._channel
        for _ in range(number):
            channel.send_method(spec.Basic.Get, "Bsb", (0, queue, False))
        answers = []
        for _ in range(number):
            answer = channel.wait([spec.Basic.GetOk, spec.Basic.GetEmpty], returns_tuple=True)
            answers.append(channel._on_get_ok(*answer) if answer and len(answer) > 1 else None)
        return answers

    def _taken(self, queue: str, message: Any) -> Taken:
        properties = message.properties
        headers = properties.get("application_headers") or {}
        info = message.delivery_info
        tag = int(info["delivery_tag"])
        self._held.add(tag)
        before = headers.get("x-delivery-count")
        body = message.body
        return Taken(
            queue,
            tag,
            body if isinstance(body, bytes) else str(body).encode(),
            headers,
            properties.get("content_type") or "",
            properties.get("content_encoding") or "",
            properties,
            int(before) if before is not None else int(bool(info.get("redelivered"))),
            before is not None,
        )

    def wait(self, queues: Sequence[str], seconds: float, interrupt: Interrupt) -> list[Taken]:
        from kombu.entity import Queue

        arrived: list[Taken] = []
        channel = self._channel
        tags: list[str] = []
        for queue in queues:
            tag = f"taskline-{len(tags)}"

            def arrive(queue: str, message: Any) -> None:
                arrived.append(self._taken(queue, message))

            Queue(queue).bind(channel).consume(tag, callback=partial(arrive, queue))
            tags.append(tag)
        poll = select.poll()
        poll.register(self.connection.connection.sock, select.POLLIN)
        poll.register(interrupt, select.POLLIN)
        until = self.clock.monotonic() + seconds
        while not arrived:
            left = until - self.clock.monotonic()
            if left <= 0:
                break
            ready = poll.poll(self.clock.bound(left) * 1000)
            if any(fd == interrupt.fileno() for fd, _ in ready):
                break
            self._read()
        self._cancel(tags, arrived)
        return arrived

    def _cancel(self, tags: Sequence[str], arrived: Sequence[Taken]) -> None:
        """End consumers; what they bring until then has arrived as well."""
        from amqp import spec

        channel = self._channel
        if len(tags) == len(arrived) == 1:
            # It has brought the one that it may (`_sync`), and will not bring another.
            channel.basic_cancel(tags[0], nowait=True)
            channel.callbacks.pop(tags[0], None)
            return
        for tag in tags:
            channel.send_method(spec.Basic.Cancel, "sb", (tag, False))
        for _ in tags:
            channel.wait(spec.Basic.CancelOk)

    def _read(self) -> None:
        """Handle what has arrived, without waiting."""
        with contextlib.suppress(TimeoutError):
            while True:
                self.connection.drain_events(timeout=0)

    # What is held

    def ack(self, tags: Sequence[int]) -> None:
        channel, held = self._channel, self._held
        done = held.intersection(tags)
        while done:
            last = max(done)
            before = {tag for tag in held if tag <= last}
            if before <= done:
                channel.basic_ack(last, multiple=True)
                held -= before
                done -= before
            else:
                for tag in done:
                    channel.basic_ack(tag)
                held -= done
                done = set()
        self._sync()

    def give_back(self, tags: Sequence[int]) -> None:
        for tag in tags:
            self._channel.basic_reject(tag, requeue=True)
        self._held.difference_update(tags)
        self._sync()

    def _sync(self) -> None:
        """A round trip: the broker has understood all that was said on the channel before."""
        # The limit is that of one consumer, for those that `wait` makes.
        self._channel.basic_qos(0, 1, False)

    def beat(self, tags: Sequence[int], lease: float) -> list[int]:
        """A round trip is a heartbeat in both directions."""
        self._read()
        self.connection.heartbeat_check()
        self._sync()
        return []
