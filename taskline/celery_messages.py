"""Celery's messages (protocol 2) and its results, in place of Taskline's frames.

`protocol="celery"` makes an app, or one queue of it, speak so: it writes messages that
Celery's workers run and reads what Celery's clients send, and the same of results. It
reads Taskline's own frames as well. https://docs.celeryq.dev/en/stable/internals/protocol.html
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from taskline import amqp, celery_results
from taskline.codec import Codec
from taskline.config import Settings
from taskline.errors import ConfigurationError, MessageRefused, SerializationError
from taskline.message import (
    FINAL_STATES,
    VERSION,
    Header,
    Message,
    Outcome,
    OutcomeHeader,
)
from taskline.queueing import Queues

CELERY = "celery"
"""In `Header.headers`: the headers of the message as Celery wrote them."""
OURS = "taskline"
"""A header of ours in Celery's message: what Celery has no word for, so that attempts are
counted and policies kept. Celery ignores it."""

_TYPES = {
    "json": "application/json",
    "pickle": "application/x-python-serialize",
    "msgpack": "application/x-msgpack",
}
_NAMES = {content_type: name for name, content_type in _TYPES.items()}
_KEPT = ("sent", "result_ttl", "retry", "first_run", "waited", "errors", "trace", "headers")
_NO_CALLBACKS = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class _Ours(msgspec.Struct, omit_defaults=True):
    """Fields of `Header` that Celery has not."""

    sent: float = 0.0
    result_ttl: float | None = None
    retry: dict[str, Any] | None = None
    first_run: float | None = None
    waited: float = 0.0
    errors: list[str] = []
    trace: dict[str, str] | None = None
    headers: dict[str, Any] = {}


class CeleryCodec(Codec):
    """Writes Celery's messages and results for queues that have them, reads those and Taskline's.

    A message of a workflow is Taskline's on every queue: Celery has no word for what it bears.
    """

    def __init__(self, settings: Settings, queues: Queues) -> None:
        if settings.signing_key or settings.verify_keys:
            raise ConfigurationError(
                "Celery's messages bear no signatures that Taskline knows: with"
                " protocol='celery' leave out signing_key and verify_keys"
            )
        super().__init__(settings)
        self._queues = queues

    def _is_celerys(self, header: Header | OutcomeHeader) -> bool:
        return self._queues.protocol(header.queue) == CELERY

    # Messages

    def encode(self, header: Header, value: Any) -> Message:
        """The message of a call; raises as `Codec.encode`."""
        if not self._is_celerys(header):
            return super().encode(header, value)
        args, kwargs = value
        body = self._write(header, [list(args), kwargs, _NO_CALLBACKS])
        return self._message(header, body, {})

    def reframe(self, header: Header, body: bytes) -> Message:
        theirs = header.headers.get(CELERY)
        if not isinstance(theirs, dict):
            if header.flow is None and header.attempt == 1 and self._is_celerys(header):
                value = super().loads(header, body)
                header.compression = ""
                return self.encode(header, value)
            return super().reframe(header, body)
        own = {name: each for name, each in header.headers.items() if name != CELERY}
        return self._message(msgspec.structs.replace(header, headers=own), body, theirs, header)

    def _message(
        self, header: Header, body: bytes, theirs: dict[str, Any], kept: Header | None = None
    ) -> Message:
        ours = _Ours(**{name: getattr(header, name) for name in _KEPT})
        content_type = _TYPES.get(header.serializer)
        if content_type is None:
            raise SerializationError(
                f"{header.task}: Celery has no serializer {header.serializer!r}: "
                f"use {', '.join(_TYPES)}"
            )
        headers = {
            "lang": "py",
            "shadow": None,
            "group": None,
            "group_index": None,
            "argsrepr": "",
            "kwargsrepr": "",
            "origin": "taskline",
            **{name: each for name, each in theirs.items() if name != "reply_to"},
            "task": header.task,
            "id": header.id,
            "eta": amqp.stamp(header.eta),
            "expires": amqp.stamp(header.expires),
            "retries": header.attempt - 1,
            "timelimit": [header.timeout, header.soft_timeout],
            "root_id": header.root or header.id,
            "parent_id": header.parent,
            "ignore_result": header.result_ttl == 0,
            OURS: msgspec.json.encode(ours).decode(),
        }
        properties = {"correlation_id": header.id}
        if theirs.get("reply_to"):
            properties["reply_to"] = theirs["reply_to"]
        encoding = "utf-8" if header.serializer == "json" else "binary"
        envelope = amqp.Envelope(headers, content_type, encoding, properties)
        try:
            frame = amqp.wrap(envelope, body)
        except Exception as error:
            raise SerializationError(f"{header.task}: the headers do not fit: {error}") from error
        return Message(kept or header, self._seal(frame))

    def open(self, frame: bytes) -> tuple[Header, bytes]:
        """The header and body of Celery's message or Taskline's; raises as `Codec.open`."""
        if not frame.startswith(amqp.MARK):
            return super().open(frame)
        if len(frame) > self._limit:
            raise MessageRefused(
                f"a message of {len(frame)} bytes is larger than max_message_size = {self._limit}"
            )
        envelope, body = amqp.unwrap(frame)
        header = _header(envelope)
        if header.serializer not in self._loads:
            raise self._not_accepted(header.serializer)
        return header, body

    def arguments(self, header: Header, body: bytes) -> tuple[Sequence[Any], dict[str, Any]]:
        """The arguments of a call; refuses callbacks, chains and chords of Celery's."""
        if CELERY not in header.headers:
            return super().arguments(header, body)
        value = self.loads(header, body)
        if not (
            isinstance(value, (list, tuple))
            and len(value) == 3
            and isinstance(value[0], (list, tuple))
            and isinstance(value[1], dict)
            and isinstance(value[2], dict)
        ):
            raise SerializationError("the body is not [arguments, keyword arguments, {…}]")
        args, kwargs, more = value
        asked = sorted(name for name in _NO_CALLBACKS if more.get(name))
        if asked:
            raise MessageRefused(
                f"the message asks for {' and '.join(asked)} of Celery's, which Taskline does not"
                " run: send what follows from the task, or leave this task to Celery's workers"
            )
        return args, kwargs

    def loads(self, header: Header | OutcomeHeader, body: bytes) -> Any:
        """JSON with the types that Celery writes into it: dates, UUIDs, decimals."""
        if header.serializer != "json" or header.compression:
            return super().loads(header, body)
        from kombu.utils.json import loads

        try:
            return loads(body)
        except Exception as error:
            raise SerializationError(f"the body cannot be read as json: {error}") from error

    def _write(self, header: Header | OutcomeHeader, value: Any) -> bytes:
        """A body that Celery reads: what its JSON has not is written as Taskline's has it."""
        if header.serializer != "json":
            dumps = self._dumps.get(header.serializer)
            if dumps is None:
                raise self._not_accepted(header.serializer)
            return self._checked(header, dumps, value)
        return self._checked(header, self._json, value)

    def _json(self, value: Any) -> bytes:
        from kombu.utils.json import dumps

        try:
            return str(dumps(value)).encode()
        except (TypeError, ValueError):
            return str(dumps(msgspec.json.decode(self._dumps["json"](value)))).encode()

    def _checked(self, header: Header | OutcomeHeader, dumps: Any, value: Any) -> bytes:
        try:
            body: bytes = dumps(value)
        except Exception as error:
            told = " ".join(str(error).split())[:200]
            raise SerializationError(
                f"{header.task}: cannot be written as {header.serializer}: {told}"
            ) from error
        return body

    # Results

    answers = True

    def reply(self, header: Header, outcome: Outcome) -> Message | None:
        """What Celery's clients wait for whose results are at `rpc://`."""
        theirs = header.headers.get(CELERY)
        address = theirs.get("reply_to") if isinstance(theirs, dict) else None
        if not address or outcome.state not in FINAL_STATES or not self._is_celerys(header):
            return None
        properties = {"correlation_id": header.id, amqp.ADDRESS: address}
        envelope = amqp.Envelope({}, _TYPES["json"], "utf-8", properties)
        answer = Header(VERSION, header.id, "", header.queue, outcome.sent)
        return Message(answer, amqp.wrap(envelope, outcome.frame))

    def encode_outcome(
        self, header: OutcomeHeader, value: Any, *, sent: float, ttl: float | None
    ) -> Outcome:
        """A result; Celery's has what only Taskline knows beside it, and is always JSON."""
        if not self._is_celerys(header):
            return super().encode_outcome(header, value, sent=sent, ttl=ttl)
        header.serializer, header.compression = "json", ""
        result = self._write(header, value)
        frame = self._seal(celery_results.pack(header, result))
        return Outcome(header.id, header.state, sent, header.deliveries, ttl, frame)

    def open_outcome(self, frame: bytes) -> tuple[OutcomeHeader, bytes]:
        """The header and value of Celery's result or Taskline's; raises as `Codec.open_outcome`."""
        if not frame.startswith(b"{") or b"\n" in frame:
            return super().open_outcome(frame)
        return celery_results.unpack(frame)


def _header(envelope: amqp.Envelope) -> Header:
    """Taskline's header of Celery's message. Raises `SerializationError`."""
    theirs = envelope.headers
    name, named = theirs.get("task"), theirs.get("id")
    if not isinstance(name, str) or not isinstance(named, str):
        raise SerializationError(
            "neither a message of Taskline's nor one of Celery's protocol 2: it has no task and id"
        )
    if theirs.get("compression"):
        raise MessageRefused(
            f"the message is compressed by Celery ({theirs['compression']}): turn that off"
        )
    serializer = _NAMES.get(envelope.content_type)
    if serializer is None:
        raise MessageRefused(f"no serializer is known for {envelope.content_type[:100]!r}")
    limits = theirs.get("timelimit") or [None, None]
    properties = envelope.properties
    try:
        ours = msgspec.json.decode(str(theirs.get(OURS) or "{}"), type=_Ours)
        kept = {key: each for key, each in theirs.items() if key != OURS}
        if properties.get("reply_to"):
            kept["reply_to"] = properties["reply_to"]
        header = Header(
            VERSION,
            named,
            name,
            str(properties.get("queue", "")),
            ours.sent,
            serializer,
            attempt=int(theirs.get("retries") or 0) + 1,
            eta=amqp.moment(theirs.get("eta")),
            expires=amqp.moment(theirs.get("expires")),
            timeout=limits[0],
            soft_timeout=limits[1],
            result_ttl=0.0 if theirs.get("ignore_result") else ours.result_ttl,
            retry=ours.retry,
            first_run=ours.first_run,
            waited=ours.waited,
            errors=ours.errors,
            parent=theirs.get("parent_id"),
            root=theirs.get("root_id"),
            trace=ours.trace,
            headers={**ours.headers, CELERY: kept},
        )
        # Another system wrote it: each field must be of its type.
        return msgspec.convert(msgspec.to_builtins(header), Header)
    except (msgspec.MsgspecError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise SerializationError(f"a header of Celery's message is wrong: {error}") from None
