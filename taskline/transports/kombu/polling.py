"""kombu's virtual transports (SQS, Redis, memory, a directory, …): asked again and again.

None of them can hold a message until it is due, but SQS for a quarter of an hour. So
there is a queue for each power of two of seconds that messages still have to wait; it is
gone through a few times in that span, and what has come nearer moves to a lower one.
"""

from __future__ import annotations

import contextlib
import math
import select
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from taskline.errors import TransportError
from taskline.transports.kombu.link import INTERNAL, Link, Parcel, Taken
from taskline.transports.kombu.location import Location

if TYPE_CHECKING:
    from kombu.connection import Connection

    from taskline.clock import Clock
    from taskline.redis.interrupt import Interrupt

PAUSE = 0.05
"""Seconds between looks at a broker that is near."""
LONG_PAUSE = 0.5
"""Seconds between looks at a broker that is far, and that costs money."""
LEVELS = range(-1, 25)
"""The powers of two of seconds; half a second and less to more than half a year."""
LOOKS = 2
"""How often a level is gone through within its span."""
MOST = 500
"""Messages of one level that are looked at in one go."""
LOCK_ENDS = 30
"""Seconds after which a lock of a dead process ends, in Redis."""
RESTORE = 1.0
"""Seconds between looks for what dead processes held, in Redis."""
SQS_DELAY = 900
"""Seconds, the most that SQS itself holds a message."""
_in_memory = threading.Lock()
"""Guards what is memory, and is never held while waiting."""
DUE, TO = "taskline-due", "taskline-to"
"""Headers of what waits for its time: when (Unix seconds), and in which queue."""


class PollingLink(Link):
    """See the module's docstring, and `Link`."""

    def __init__(self, location: Location, clock: Clock, connection: Connection) -> None:
        super().__init__(location, clock, connection)
        self.kind = str(connection.transport.driver_type)
        self.version = str(connection.transport.driver_version())
        self.product = self.kind
        self._pause = LONG_PAUSE if self.kind == "sqs" else PAUSE
        self._looks = dict.fromkeys(LEVELS, 0.0)
        """When each level is looked at next, by the monotonic clock."""
        self._restore_at = 0.0
        self._declared: set[str] = set()
        self._taken_tags: dict[Any, Any] = {}
        self._channel: Any = None

    def open(self) -> None:
        from kombu.messaging import Producer

        self._channel = self.connection.channel()
        if self.kind == "sqs":
            self._channel.do_restore = False  # SQS gives back by itself
        self._producer = Producer(self._channel, auto_declare=False)

    def is_theirs(self, error: Exception) -> bool:
        # Each has a driver with exceptions of its own.
        return not type(error).__module__.startswith(("taskline", "builtins")) or isinstance(
            error, KeyError
        )

    # Queues

    def declare(self, queue: str) -> None:
        if queue not in self._declared:
            self._channel.queue_declare(queue=queue, durable=True)
            self._declared.add(queue)

    def count(self, queue: str) -> int:
        try:
            return int(self._channel.queue_declare(queue=queue, passive=True).message_count)
        except self.connection.channel_errors:
            return 0

    def purge(self, queue: str) -> int:
        self.declare(queue)
        return int(self._channel.queue_purge(queue) or 0)

    def purge_delayed(self, queue: str) -> int:
        purged = 0
        for number in LEVELS if self.kind != "sqs" else ():
            name = _level(number)
            kept = []
            for each in self.get(name, self.count(name)):
                if each.headers.get(TO) == queue:
                    purged += 1
                    self.ack([each.tag])
                else:
                    kept.append(each)
            self.give_back([each.tag for each in kept])
        return purged

    def give_back(self, tags: Sequence[Any]) -> None:
        for tag in tags:
            self._channel.basic_reject(tag, requeue=True)
            self._taken_tags.pop(tag, None)

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Where a lock can be had: in memory and in Redis."""
        if self.kind == "memory":
            with _in_memory:
                yield
        elif self.kind == "redis":
            with self._alone_in_redis(name):
                yield
        else:
            yield

    @contextlib.contextmanager
    def _alone_in_redis(self, name: str) -> Iterator[None]:
        from kombu.transport.redis import Mutex, MutexHeld

        until = self.clock.monotonic() + 2 * self.location.timeout
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(self._channel.conn_or_acquire())
            while True:
                try:
                    stack.enter_context(Mutex(client, name, LOCK_ENDS))
                    break
                except MutexHeld:
                    if self.clock.monotonic() > until:
                        raise TransportError(
                            f"{self.location}: another process is busy with {name}: try again"
                        ) from None
                    self.clock.sleep(0.01)
            yield

    # Sending

    def publish(self, parcels: Sequence[Parcel]) -> None:
        for parcel in parcels:
            queue, headers = parcel.queue, parcel.headers
            properties = dict(parcel.properties)
            if parcel.delay > 0 and self.kind == "sqs":
                properties["DelaySeconds"] = min(math.ceil(parcel.delay), SQS_DELAY)
            elif parcel.delay > 0:
                due = self.clock.time() + parcel.delay
                headers = {**headers, DUE: due, TO: parcel.queue}
                queue = _level(_power(parcel.delay))
            if not parcel.reply:
                self.declare(queue)
            self._producer.publish(
                parcel.body,
                routing_key=queue,
                exchange="",
                headers=headers,
                priority=parcel.priority,
                content_type=parcel.content_type,
                content_encoding=parcel.content_encoding,
                delivery_mode=2,
                **properties,
            )

    # Receiving

    def get(self, queue: str, limit: int) -> list[Taken]:
        found: list[Taken] = []
        while len(found) < limit:
            message = self._channel.basic_get(queue, no_ack=False)
            if message is None:
                break
            found.append(self._taken(queue, message))
        return found

    def _taken(self, queue: str, message: Any) -> Taken:
        info = message.delivery_info or {}
        headers = dict(message.headers or {})
        again = bool(headers.pop("redelivered", False) or info.get("redelivered"))
        told = info.get("sqs_message", {}).get("Attributes", {}).get("ApproximateReceiveCount")
        self._taken_tags[message.delivery_tag] = message
        body = message.body
        return Taken(
            queue,
            message.delivery_tag,
            body if isinstance(body, bytes) else str(body).encode(),
            headers,
            message.content_type or "",
            message.content_encoding or "",
            message.properties or {},
            int(told) - 1 if told else int(again),
            bool(told),
        )

    def wait(self, queues: Sequence[str], seconds: float, interrupt: Interrupt) -> list[Taken]:
        poll = select.poll()
        poll.register(interrupt, select.POLLIN)
        until = self.clock.monotonic() + seconds
        while True:
            for queue in queues:
                if found := self.get(queue, 1):
                    return found
            left = min(until - self.clock.monotonic(), self._pause)
            if left <= 0 or poll.poll(self.clock.bound(left) * 1000):
                return []
            self.upkeep()

    def upkeep(self) -> None:
        """Go through the levels whose time it is, and let the broker give back what was lost."""
        now = self.clock.monotonic()
        if self.kind == "redis" and now >= self._restore_at:
            self._restore_at = now + RESTORE
            self._channel.qos.restore_visible(num=MOST, interval=1)
        if self.kind == "sqs":
            return
        for number, at in self._looks.items():
            if at <= now:
                self._looks[number] = now + 2.0**number / LOOKS
                self._go_through(_level(number), now)

    def _go_through(self, name: str, now: float) -> None:
        number = min(self.count(name), MOST)
        for each in self.get(name, number) if number else ():
            left = float(each.headers.get(DUE, 0.0)) - self.clock.time()
            if left > 0:
                lower = _power(left)
                self._looks[lower] = min(self._looks[lower], now + left)
            parcel = Parcel(
                str(each.headers.get(TO)),
                each.body,
                {key: value for key, value in each.headers.items() if key not in (DUE, TO)},
                each.properties.get("priority"),
                max(0.0, left),
                each.content_type,
                each.content_encoding,
                {key: each.properties[key] for key in KEPT if each.properties.get(key)},
            )
            self.publish([parcel])
            self.ack([each.tag])

    # What is held

    def ack(self, tags: Sequence[Any]) -> None:
        for tag in tags:
            self._channel.basic_ack(tag)
            self._taken_tags.pop(tag, None)

    def begin(self, tags: Sequence[Any], lease: float) -> None:
        if self.kind == "sqs":
            self._renew_in_sqs(tags, lease)

    def beat(self, tags: Sequence[Any], lease: float) -> list[Any]:
        """Renew where kombu's transport has a time after which others get the message."""
        if not tags:
            return []
        if self.kind == "redis":
            self._renew_in_redis(tags)
        elif self.kind == "sqs":
            return self._renew_in_sqs(tags, lease)
        return []

    def _renew_in_redis(self, tags: Sequence[Any]) -> None:
        channel = self._channel
        with channel.conn_or_acquire() as client:
            # Only those that are still there: what was given back is another's.
            now = self.clock.time()
            client.zadd(channel.unacked_index_key, dict.fromkeys(tags, now), xx=True)

    def _renew_in_sqs(self, tags: Sequence[Any], lease: float) -> list[Any]:
        lost = []
        for tag in tags:
            info = self._taken_tags[tag].delivery_info
            try:
                self._channel.sqs(queue=info["routing_key"]).change_message_visibility(
                    QueueUrl=info["sqs_queue"],
                    ReceiptHandle=tag,
                    VisibilityTimeout=max(1, math.ceil(lease)),
                )
            except Exception as error:
                if "ReceiptHandle" not in str(error) and "not in flight" not in str(error):
                    raise
                lost.append(tag)
        return lost

    def drop(self) -> None:
        with contextlib.suppress(Exception):
            self.connection.release()


KEPT = ("correlation_id", "reply_to", "message_id")
"""Properties that go with a message when it is stored anew."""


def _level(number: int) -> str:
    return f"{INTERNAL}delay.{number}"


def _power(seconds: float) -> int:
    """The level for messages that have so long to wait."""
    return min(max(LEVELS[0], math.floor(math.log2(seconds))), LEVELS[-1])


def options_for(kind: str, lease: float | None) -> dict[str, Any]:
    """kombu's transport options, under those that the user gives."""
    if kind == "redis":
        # Keys of our own: Celery's workers on this database have another visibility timeout.
        return {
            "unacked_key": "taskline_unacked",
            "unacked_index_key": "taskline_unacked_index",
            "unacked_mutex_key": "taskline_unacked_mutex",
            "visibility_timeout": lease or 3600.0,
        }
    if kind == "sqs":
        return {
            "wait_time_seconds": 0,
            "visibility_timeout": max(1, math.ceil(lease or 30)),
            "fetch_message_attributes": ["ApproximateReceiveCount"],
        }
    return {}
