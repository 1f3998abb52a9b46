"""Calls that are not to meet others, where they run: see `taskline.claims`.

`begin` is called by the slot right before the task's code, `free` by the I/O thread once
the message is settled.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from taskline.backends.keys import KeyStore
from taskline.claims import STARTED, TRIES, Claim, read, replaced_by
from taskline.errors import BackendError
from taskline.message import FINAL_STATES, SUCCESS
from taskline.unique import check_place
from taskline.worker.execute import Job
from taskline.worker.verdicts import NotToRun

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.message import Header, Unique

AFTER = 3600.0
"""Seconds for which it is known that the newest has begun: older ones that come late do not run."""
BEGUN = b"begun"
"""In place of a claim: the run began, and holds none."""


def begin(app: Taskline, job: Job) -> None:
    """Note that the run begins; raises `NotToRun` if it must not, and `TransportError`.

    Only what is known for sure keeps a message from running: that its task has ended under
    the same id, or that a later call has taken its place.
    """
    header = job.header
    assert header is not None
    unique = header.unique
    assert unique is not None
    check_place(app, header.task, header.queue)
    if unique.until == "time":
        _check_repetition(app, header, job.delivery.deliveries)
        job.claim = BEGUN
        return
    keys = app.require_backend().keys()
    for _ in range(TRIES):
        found = keys.get(unique.key)
        claim = read(unique.key, found)
        if unique.until == "newer":
            job.claim = _begin_newest(app, keys, header, unique, found, claim)
        else:
            deliveries = job.delivery.deliveries
            job.claim = _begin_first(app, keys, header, unique, found, claim, deliveries)
        if job.claim is not None:
            return
    raise BackendError(f"the key {unique.key!r} is being changed by too many")


def _begin_first(
    app: Taskline,
    keys: KeyStore,
    header: Header,
    unique: Unique,
    found: bytes | None,
    claim: Claim | None,
    deliveries: int,
) -> bytes | None:
    """What the job holds now; None if it must be tried again."""
    own = claim is not None and claim.id == header.id
    if claim is None or not own or claim.phase == STARTED:
        _check_repetition(app, header, deliveries)
    if unique.until == "start":
        return BEGUN if not own or keys.swap(unique.key, found, None, None) else None
    if claim is not None and not own:
        return BEGUN
    # The number of the delivery makes it this run's own: one that lost its lease does not free it.
    mine = Claim(header.id, STARTED, app.now(), unique.print, deliveries, sent=header.sent)
    return mine.written() if keys.swap(unique.key, found, mine.written(), unique.ttl) else None


def _begin_newest(
    app: Taskline,
    keys: KeyStore,
    header: Header,
    unique: Unique,
    found: bytes | None,
    claim: Claim | None,
) -> bytes | None:
    if claim is None:
        claim = Claim(header.id, "", 0.0, turn=unique.turn, sent=header.sent)
    elif claim.id != header.id:
        if claim.turn >= unique.turn:
            raise NotToRun(replaced_by(claim.id))
        # Its sender is about to point the key at it, or died before: what has the key runs too.
        return BEGUN
    mine = msgspec.structs.replace(claim, phase=STARTED, at=app.now())
    ttl = min(unique.ttl, AFTER + (unique.max_wait or unique.wait or 0.0))
    return BEGUN if keys.swap(unique.key, found, mine.written(), ttl) else None


def _check_repetition(app: Taskline, header: Header, deliveries: int) -> None:
    """Raise `NotToRun` for a message of a task that has ended.

    Its worker may have died before the receipt, and the key be another's since: then a second run
    would meet that one's. But a dead letter that was requeued is to run again.
    """
    found = app.require_backend().fetch([header.id]).get(header.id)
    # An id of the user's own may be used again: then its message was sent later.
    if found is None or found.sent < header.sent:
        return
    again = deliveries > 1 or header.attempt > 1
    if found.state == SUCCESS or (found.state in FINAL_STATES and not again):
        raise NotToRun("")


def free(keys: KeyStore, jobs: Iterable[Job]) -> None:
    """Give back the keys of these jobs, which have ended and are settled."""
    for job in jobs:
        unique = None if job.header is None else job.header.unique
        if unique is None or unique.until == "time" or job.claim == BEGUN:
            continue
        if job.claim is not None and keys.swap(unique.key, job.claim, None, None):
            continue
        # It ended without a run (revoked, expired, refused), or a sender has made sure of it.
        own = read(unique.key, job.claim)
        found = keys.get(unique.key)
        claim = read(unique.key, found)
        if claim is None or claim.id != job.delivery.id:
            continue
        if own is None or claim.turn == own.turn:
            keys.swap(unique.key, found, None, None)
