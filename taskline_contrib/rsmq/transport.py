"""The transport `rsmq://host:port/db`: RSMQ's queues under Taskline's seam."""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec

from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import ConfigurationError, TransportError
from taskline.message import DeadLetter, Delivery, Message, Outcome
from taskline.registry import Spec, hide_password, options_of
from taskline.transports.base import Capabilities, QueueStats, StoredMessage, Transport
from taskline_contrib.driver import open_client, translated
from taskline_contrib.rsmq import wire
from taskline_contrib.rsmq.listener import Listener
from taskline_contrib.text import from_text, to_text

if TYPE_CHECKING:
    from typing_extensions import Self

BATCH = 1000
"""Messages for one call of the server, which serves nobody else meanwhile."""
SWEEP_EVERY = 50
"""Messages sent between two looks for what other clients have deleted."""
ANSWER_TIMEOUT = 10.0
"""Seconds."""

_pack = msgspec.msgpack.encode


class RSMQTransport(Transport):
    """Messages in queues of the RSMQ protocol, beside its clients in other languages.

    `task` names the task that runs a plain message of another client, with the text
    (`body="text"`) or the JSON value in it (`body="json"`) as its one argument;
    without it such a message becomes a dead letter. `vt`, `delay` (seconds) and
    `maxsize` (bytes, -1 for any) are the attributes of queues that are created by
    sending to them. `poll` is the greatest number of seconds until messages of
    clients that do not publish them (RSMQ's `realtime`) are seen.
    """

    scheme = "rsmq"
    capabilities = Capabilities(priority=False)

    def __init__(
        self,
        address: str,
        clock: Clock = SYSTEM_CLOCK,
        *,
        ns: str = "rsmq",
        task: str = "",
        body: str = "text",
        vt: float = 30,
        delay: float = 0,
        maxsize: int = -1,
        poll: float = 1.0,
        tls: bool = False,
    ) -> None:
        super().__init__(clock)
        if body not in ("text", "json"):
            raise ConfigurationError(f"rsmq option body={body!r}: it is text or json")
        if poll <= 0:
            raise ConfigurationError(f"rsmq option poll={poll:g}: it is more than 0 seconds")
        url = f"{'rediss' if tls else 'redis'}://{address}"
        self._client = open_client("rsmq", url, answer_timeout=ANSWER_TIMEOUT, retries=1)
        self._address = "rsmq" + hide_password(url).removeprefix("rediss").removeprefix("redis")
        self._prefix = f"{ns}:"
        self._script = self._client.register_script(_script())
        self._task = task
        self._as_json = body == "json"
        self._attributes = (vt, delay, maxsize)
        self._poll = poll
        self._heard = threading.Event()
        self._interrupted = False
        self._listener: Listener | None = None
        self._unswept = 0
        self._cursors = ["0", "0"]
        self._closed = False

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """`rsmq://user:password@host:port/db?ns=…`, or a mapping with `address` and options."""
        options = options_of(
            spec,
            rest="address",
            ns=str,
            task=str,
            body=str,
            vt=_number,
            delay=_number,
            maxsize=int,
            poll=_number,
            tls=_flag,
        )
        return cls(options.pop("address", "") or "localhost", clock, **options)

    def send(self, messages: Sequence[Message]) -> None:
        """In steps of a thousand. Raises for a message longer than its queue's `maxsize`."""
        for batch in _batches(messages):
            self._store(batch, again=False)
        self._unswept += len(messages)
        if self._unswept >= SWEEP_EVERY:
            self._unswept = 0
            self.maintain()

    def receive(
        self, queues: Sequence[str], limit: int, lease: float, wait: float, consumer: str
    ) -> list[Delivery]:
        """Waits for messages that are published; looks every `poll` seconds for others."""
        clock = self.clock
        until = clock.monotonic() + wait
        names = [wire.to_rsmq(queue) for queue in queues]
        while True:
            self._heard.clear()
            next_due, found = self._call("receive", names, limit, _ms(lease), consumer)
            left = until - clock.monotonic()
            if found or self._interrupted or left <= 0:
                self._interrupted = False
                return [self._delivery(queues[item[0]], names[item[0]], item) for item in found]
            if self._listen(names):
                continue
            due = next_due / 1000 if next_due >= 0 else math.inf
            self._heard.wait(clock.bound(min(left, due, self._poll)))

    def interrupt(self) -> None:
        self._interrupted = True
        self._heard.set()

    def ack(
        self, deliveries: Sequence[Delivery], outcomes: Sequence[Outcome] = ()
    ) -> list[Delivery]:
        return self._settle("ack", deliveries)

    def release(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> list[Delivery]:
        return self._settle("release", deliveries, _ms(delay))

    def extend(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]:
        """As RSMQ's changeMessageVisibility, for those still held."""
        return self._settle("extend", deliveries, _ms(lease))

    def replace(self, pairs: Sequence[tuple[Delivery, Message]]) -> list[Delivery]:
        lost: list[Delivery] = []
        for batch in _batches(pairs):
            written = [[delivery.receipt, self._written(message)] for delivery, message in batch]
            refused = self._call("replace", written, *self._attributes)
            lost.extend(batch[index][0] for index in refused)
        return lost

    def bury(self, burials: Sequence[tuple[Delivery, DeadLetter]]) -> list[Delivery]:
        """Into the queue `{queue}-dead`, with the reason in a hash beside it."""
        lost: list[Delivery] = []
        for batch in _batches(burials):
            written = [
                [
                    delivery.receipt,
                    wire.to_rsmq(letter.queue) + wire.DEAD,
                    letter.id,
                    to_text(letter.frame),
                    wire.random_suffix(),
                    msgspec.json.encode(msgspec.structs.replace(letter, frame=b"")).decode(),
                ]
                for delivery, letter in batch
            ]
            lost.extend(batch[index][0] for index in self._call("bury", written))
        return lost

    def recover(self, consumer: str, started: Collection[str]) -> int:
        return int(self._call("recover", consumer, list(started)))

    def stats(self, queues: Sequence[str] | None = None) -> list[QueueStats]:
        """Messages that clients of another make hold are counted as delayed."""
        if queues is not None and not queues:
            return []
        names = [wire.to_rsmq(queue) for queue in queues or ()]
        found = [
            QueueStats(
                queue=wire.from_rsmq(name.decode()),
                ready=ready,
                delayed=delayed,
                leased=leased,
                dead=dead,
                oldest=None if age < 0 else age / 1000,
            )
            for name, ready, delayed, leased, dead, age in self._call("stats", names)
        ]
        return sorted(found, key=lambda each: each.queue)

    def peek(self, queue: str, limit: int = 10, offset: int = 0) -> list[StoredMessage]:
        shown = []
        found = self._call("peek", wire.to_rsmq(queue), limit, offset)
        for id, state, score, deliveries, body, _rid in found:  # noqa: A001
            key = id.decode()
            shown.append(
                StoredMessage(
                    id=key,
                    queue=queue,
                    state=state.decode(),
                    due=None if state == b"ready" else score / 1000,
                    deliveries=deliveries,
                    frame=self._frame(queue, key, body),
                )
            )
        return shown

    def purge(self, queue: str) -> int:
        """Also keeps what clients of another make hold."""
        name = wire.to_rsmq(queue)
        total, offset = 0, 0
        while True:
            gone, kept = map(int, self._call("purge", name, offset, BATCH))
            total += gone
            offset += kept
            if gone + kept < BATCH:
                return total

    def delete(self, ids: Sequence[str]) -> list[str]:
        """Those that Taskline sent or has received once."""
        refused = set(self._call("delete", list(ids)))
        return [id for index, id in enumerate(ids) if index not in refused]  # noqa: A001

    def dead_letters(
        self, queue: str | None = None, limit: int = 100, offset: int = 0
    ) -> list[DeadLetter]:
        name = "" if queue is None else wire.to_rsmq(queue) + wire.DEAD
        return [self._letter(*found) for found in self._call("letters", name, limit, offset)]

    def dead_letter(self, id: str) -> DeadLetter | None:
        found = self._call("letter", id)
        return self._letter(*found[0]) if found else None

    def requeue(self, messages: Sequence[Message]) -> list[str]:
        requeued: list[str] = []
        for batch in _batches(messages):
            refused = set(self._store(batch, again=True))
            requeued += [m.header.id for i, m in enumerate(batch) if i not in refused]
        return requeued

    def purge_dead(self, ids: Sequence[str]) -> int:
        return int(self._call("purge_dead", list(ids)))

    def ping(self) -> None:
        self._check_open()
        with translated(self._address):
            self._client.set(f"{self._prefix}taskline:ping", b"", px=1000)

    def info(self) -> dict[str, Any]:
        self._check_open()
        with translated(self._address):
            server: dict[str, Any] = self._client.info("server")
            queues = self._client.scard(f"{self._prefix}QUEUES")
        return {
            "transport": self.scheme,
            "address": self._address,
            "version": f"Redis {server['redis_version']}",
            "namespace": self._prefix[:-1],
            "queues": queues,
        }

    def maintain(self) -> None:
        """Forget, a hundred at a time, what clients of another make have deleted."""
        self._cursors = [each.decode() for each in self._call("sweep", *self._cursors)]

    def close(self) -> None:
        self._closed = True
        self._heard.set()
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.stop()
        self._client.close()

    def _call(self, name: str, *arguments: Any) -> Any:
        """One call of `script.lua`."""
        self._check_open()
        with translated(self._address):
            return self._script(keys=[self._prefix], args=[name, _pack(arguments)])

    def _store(self, messages: Sequence[Message], *, again: bool) -> list[int]:
        written = [self._written(message) for message in messages]
        answer: list[Any] = self._call("send", written, *self._attributes, again)
        if answer[:1] == [-1]:
            _, name, size, most = answer
            raise TransportError(
                f"a message of {size} bytes is longer than maxsize={most} of the RSMQ queue"
                f" {wire.from_rsmq(name.decode())!r}: raise that attribute, or send less",
                retryable=False,
            )
        return answer

    def _written(self, message: Message) -> list[Any]:
        header = message.header
        return [
            wire.to_rsmq(header.queue),
            header.id,
            to_text(message.frame),
            _ms(header.eta) if header.eta is not None else 0,
            wire.random_suffix(),
            header.deliveries,
        ]

    def _settle(self, verb: str, deliveries: Sequence[Delivery], *more: int) -> list[Delivery]:
        lost: list[Delivery] = []
        for batch in _batches(deliveries):
            refused = self._call(verb, [each.receipt for each in batch], *more)
            lost.extend(batch[index] for index in refused)
        return lost

    def _delivery(self, queue: str, name: str, item: Any) -> Delivery:
        _, rid, id, body, deliveries, lost, rc = item  # noqa: A001
        key = id.decode()
        frame = self._frame(queue, key, body)
        return Delivery(key, queue, frame, deliveries, lost, (name, rid.decode(), rc))

    def _frame(self, queue: str, id: str, body: bytes) -> bytes:
        """What the worker gets for a stored message: another client's is a call of `task`."""
        frame = from_text(body)
        if not self._task or wire.is_frame(frame):
            return frame
        called = wire.call_frame(self._task, queue, id, frame, as_json=self._as_json)
        return frame if called is None else called

    def _letter(self, name: bytes, rid: bytes, body: bytes, written: bytes) -> DeadLetter:
        frame = from_text(body)
        if written:
            letter = msgspec.json.decode(written, type=DeadLetter)
            return msgspec.structs.replace(letter, frame=frame)
        return DeadLetter(
            id=rid.decode(),
            queue=wire.from_rsmq(name.decode().removesuffix(wire.DEAD)),
            reason="put into the dead letters by another client of RSMQ",
            at=wire.sent_at(rid.decode()),
            frame=frame,
        )

    def _listen(self, names: Iterable[str]) -> bool:
        """Have a listener for these queues; true when it is new, and something may be missed."""
        listener = self._listener
        if listener is not None and listener.names.issuperset(names):
            return False
        if listener is not None:
            listener.stop()
            names = listener.names.union(names)
        self._listener = Listener(self._client, self._prefix, names, self._heard)
        self._listener.ready()
        return True

    def _check_open(self) -> None:
        if self._closed:
            raise TransportError("the rsmq transport is closed: open another", retryable=False)


@cache
def _script() -> str:
    return files(__package__).joinpath("script.lua").read_text()


def _batches(things: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (things[at : at + BATCH] for at in range(0, len(things), BATCH))


def _ms(seconds: float) -> int:
    return math.ceil(seconds * 1000)


def _number(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 9_999_999:
        raise ValueError("it is between 0 and 9999999 seconds")
    return number


def _flag(text: str) -> bool:
    words: dict[str, bool] = {"1": True, "true": True, "0": False, "false": False}
    if text.lower() not in words:
        raise ValueError("it is true or false")
    return words[text.lower()]
