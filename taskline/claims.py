"""Sending calls that are not to meet others: who has a key, and what becomes of the second.

What stands under a key is changed by compare-and-swap alone. Two ways:

First come. A claim names the call that has the key. It is made before the message is sent and
confirmed after; a second call that meets one without confirmation, or an old one, makes sure
itself that the message is there: it sends it under the id of the first, which changes nothing
where that is stored. So whoever dies between two steps, no call is dropped in favour of one
that never was.

Newest wins (`debounce`, `replace`). The message is sent first, then the key is pointed at it.
A worker runs none that is older than the one the key points at. So whoever dies between the
two costs a run too many, not one too few.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import msgspec

from taskline.backends.keys import KeyStore
from taskline.batch import CHUNK, current_batch
from taskline.chunking import chunks
from taskline.errors import BackendError, KeyReused, TransportError
from taskline.message import FINAL_STATES, REVOKED, VERSION, Header, Message, Outcome, Unique
from taskline.outcomes import outcome, revocation
from taskline.result import AsyncResult

if TYPE_CHECKING:
    from taskline.app import Taskline

log = logging.getLogger("taskline")

SENDING, SENT, STARTED = "sending", "sent", "started"

RECHECK = 60.0
"""Seconds after which a second call makes sure again that the first is still there."""
CONFIRM_WITHIN = 5.0
"""Seconds that a sender gets for its message, where sending it for him would store it twice."""
_LOOK_AGAIN = 0.02
TRIES = 100
"""How often a key is tried that others change at the same moment."""


class Claim(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who has a key. Moments are Unix seconds."""

    id: str
    phase: str
    at: float
    """When it was known last that the message is there."""
    print: str = ""
    turn: int = 0
    """Where the newest wins its place in the order; else which delivery has started."""
    first: float = 0.0
    """When the first of those was called which this one stands for."""
    sent: float = 0.0
    """As in the header of its message."""

    def written(self) -> bytes:
        return msgspec.json.encode(self)


def read(key: str, raw: bytes | None) -> Claim | None:
    """The claim that stands under a key. Raises `BackendError` when it is something else."""
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=Claim)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BackendError(f"the key {key!r} holds no claim: {error}", retryable=False) from None


def send(app: Taskline, messages: Sequence[Message]) -> None:
    """As `app.send`, for messages of which some may be unique."""
    if any(each.header.unique is not None for each in messages):
        deliver(app, messages, [AsyncResult(app, each.header.id) for each in messages])
    else:
        app.send(messages)


def deliver(
    app: Taskline, messages: Sequence[Message], results: Sequence[AsyncResult[Any]]
) -> None:
    """Send what is to be sent of these, and let each result be that of the call that has the key.

    In a batch that is done at its end. Raises `KeyReused`, and what `app.send` raises.
    """
    batch = current_batch()
    if batch is not None and batch.take(app, messages, results):
        return
    sending = _Sending(app)
    for message, result in zip(messages, results, strict=True):
        sending.add(message, result)
    sending.send()


class _Sending:
    """Some messages on their way."""

    def __init__(self, app: Taskline) -> None:
        self._app = app
        self._backend = app.require_backend()
        self._keys: KeyStore = self._backend.keys()
        self._idempotent = app.transport.capabilities.idempotent
        self._messages: list[Message] = []
        self._confirm: list[tuple[Unique, bytes, Claim]] = []
        """What to make of which claims once the messages are sent."""
        self._own: set[str] = set()
        self._point: list[tuple[Unique, bytes | None, Claim, Header]] = []
        self._turns: dict[str, int] = {}

    def add(self, message: Message, result: AsyncResult[Any]) -> None:
        unique = message.header.unique
        if unique is None:
            self._messages.append(message)
        elif unique.until == "newer":
            self._enqueue(message, unique)
        else:
            self._claim(message, unique, result)

    def send(self) -> None:
        app = self._app
        try:
            for chunk in chunks(self._messages, CHUNK):
                app.send(chunk)
        except TransportError as error:
            if not error.retryable:  # it will never be there; else the next call looks after it
                for unique, raw, claim in self._confirm:
                    if claim.id in self._own:
                        self._keys.swap(unique.key, raw, None, None)
            raise
        for unique, raw, claim in self._confirm:
            self._note(unique, raw, claim)
        for unique, before, claim, header in self._point:
            self._point_at(unique, before, claim, header)

    # First come

    def _claim(self, message: Message, unique: Unique, result: AsyncResult[Any]) -> None:
        keys, header, now = self._keys, message.header, self._app.now()
        mine = Claim(header.id, SENDING, now, unique.print, sent=header.sent)
        raw = mine.written()
        for _ in range(TRIES):
            if keys.set(unique.key, raw, unique.ttl, if_absent=True):
                self._send_as(message, unique, raw, mine)
                return
            found = keys.get(unique.key)
            claim = read(unique.key, found)
            if claim is None or found is None:
                continue
            if claim.id == header.id:  # this very call was sent before
                self._send_as(message, unique, found, claim)
                return
            if claim.print != unique.print:
                raise _reused(header, claim.id)
            if self._is_over(unique, claim):
                if keys.swap(unique.key, found, raw, unique.ttl):
                    self._send_as(message, unique, raw, mine)
                    return
                continue
            if claim.id not in self._own and self._is_unsure(unique, claim, now):
                if not self._idempotent and self._moves(unique.key, found):
                    continue
                again = msgspec.structs.replace(header, id=claim.id, sent=claim.sent)
                _, body = self._app.codec.open(message.frame)
                message = self._app.codec.reframe(again, body)
                self._messages.append(message)
                self._confirm.append((unique, found, claim))
            self._join(result, header, unique, claim)
            return
        raise self._contended(unique)

    def _send_as(self, message: Message, unique: Unique, raw: bytes, claim: Claim) -> None:
        self._messages.append(message)
        self._confirm.append((unique, raw, claim))
        self._own.add(claim.id)

    def _join(self, result: AsyncResult[Any], header: Header, unique: Unique, claim: Claim) -> None:
        result.duplicate = True
        if unique.drop:
            result._final = _revoked(self._app, header, f"a duplicate of {claim.id}, and dropped")
        else:
            result.id = claim.id
            result._header = msgspec.structs.replace(header, id=claim.id)

    def _is_over(self, unique: Unique, claim: Claim) -> bool:
        """Whether the first has ended, and only its key is still there."""
        if unique.until == "time":
            return False
        found = self._backend.fetch([claim.id]).get(claim.id)
        return found is not None and found.state in FINAL_STATES

    def _is_unsure(self, unique: Unique, claim: Claim, now: float) -> bool:
        """Whether the first's message may not be there: not sent yet, or purged since."""
        if claim.phase == SENDING:
            return True
        return self._idempotent and unique.until != "time" and now - claim.at > RECHECK

    def _moves(self, key: str, found: bytes) -> bool:
        """Give the first time to confirm; whether the key has changed since."""
        clock = self._app.clock
        by = clock.monotonic() + CONFIRM_WITHIN
        while clock.monotonic() < by:
            if self._keys.get(key) != found:
                return True
            clock.sleep(_LOOK_AGAIN)
        return False

    def _note(self, unique: Unique, raw: bytes, claim: Claim) -> None:
        """Confirm that a message is there. Should that fail, the next call makes sure of it."""
        phase = SENT if claim.phase == SENDING else claim.phase
        sure = msgspec.structs.replace(claim, phase=phase, at=self._app.now()).written()
        try:
            ttl: float | None = unique.ttl
            if claim.id not in self._own and unique.until == "time":
                ttl = self._keys.ttl(unique.key)
                if ttl is None:
                    return
            self._keys.swap(unique.key, raw, sure, ttl)
        except TransportError as error:
            log.warning("task %s is sent, but its key is not confirmed: %s", claim.id, error)

    # Newest wins

    def _enqueue(self, message: Message, unique: Unique) -> None:
        header, now = message.header, self._app.now()
        before = self._keys.get(unique.key)
        record = read(unique.key, before)
        turn = max(
            int(now * 1_000_000),
            0 if record is None else record.turn + 1,
            self._turns.get(unique.key, 0) + 1,
        )
        self._turns[unique.key] = turn
        first = record.first if record is not None and record.phase == SENT else now
        header = msgspec.structs.replace(
            header, unique=msgspec.structs.replace(unique, turn=turn), eta=header.eta
        )
        if unique.wait is not None:
            header.eta = now + unique.wait
            if unique.max_wait is not None:
                header.eta = min(header.eta, first + unique.max_wait)
        _, body = self._app.codec.open(message.frame)
        self._messages.append(self._app.codec.reframe(header, body))
        claim = Claim(header.id, SENT, now, "", turn, first, header.sent)
        self._point.append((unique, before, claim, header))

    def _point_at(self, unique: Unique, before: bytes | None, claim: Claim, header: Header) -> None:
        for _ in range(TRIES):
            record = read(unique.key, before)
            if record is not None and record.id == claim.id:
                return  # it has begun already
            if record is not None and record.turn >= claim.turn:  # called at the same moment
                self._discard(claim, header, record.id)
                return
            if record is not None and record.phase == SENT:
                claim = msgspec.structs.replace(claim, first=record.first)
            if self._keys.swap(unique.key, before, claim.written(), unique.ttl):
                if record is not None and record.phase == SENT:
                    self._discard(record, header, claim.id)
                return
            before = self._keys.get(unique.key)
        raise self._contended(unique)

    def _discard(self, old: Claim, header: Header, by: str) -> None:
        """A message that will not be run: tell who waits for it, then take it from the queue."""
        app = self._app
        header = Header(
            VERSION, old.id, header.task, header.queue, old.sent, app.settings.serializer
        )
        self._backend.store([_revoked(app, header, replaced_by(by))])
        if app.transport.capabilities.delete:
            app.transport.delete([old.id])

    def _contended(self, unique: Unique) -> BackendError:
        return BackendError(f"the key {unique.key!r} is being changed by too many: try again")


def replaced_by(id: str) -> str:
    """Why a call was not run."""
    return f"a later call took its place, {id}"


def _reused(header: Header, first: str) -> KeyReused:
    return KeyReused(
        f"{header.task}: this idempotency_key was used for a call with other arguments, {first}: "
        "use one key for one call"
    )


def _revoked(app: Taskline, header: Header, why: str) -> Outcome:
    ttl = app.settings.result_ttl if header.result_ttl is None else header.result_ttl
    return outcome(
        app.codec,
        header,
        REVOKED,
        deliveries=0,
        finished=app.now(),
        error=revocation(why),
        ttl=ttl,
    )


# Eager mode

_kept: WeakKeyDictionary[Taskline, dict[str, tuple[str, float, str]]] = WeakKeyDictionary()
"""Of each eager app which call has which key, until when."""


def run_eagerly(app: Taskline, message: Message) -> AsyncResult[Any]:
    """Run it here, unless its key is taken for a time: nothing else can be queued or run."""
    header, now = message.header, app.now()
    unique = header.unique
    if unique is None or unique.until != "time":
        return app.run_here(message)
    kept = _kept.setdefault(app, {})
    first, end, print_ = kept.get(unique.key, ("", 0.0, ""))
    if end <= now:
        kept[unique.key] = (header.id, now + unique.ttl, unique.print)
        return app.run_here(message)
    if print_ != unique.print:
        raise _reused(header, first)
    result: AsyncResult[Any] = app.AsyncResult(first)
    if unique.drop:
        why = f"a duplicate of {first}, and dropped"
        result = AsyncResult(app, header.id, header, _revoked(app, header, why))
    result.duplicate = True
    return result
