"""`app.dead`: find, describe, requeue and purge the dead letters of an app."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from taskline.chunking import chunks
from taskline.errors import SerializationError
from taskline.message import PENDING, DeadLetter, Message
from taskline.outcomes import outcome

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.backends.base import Backend

_PAGE = 100


class DeadLetters:
    """The dead letters of one app."""

    def __init__(self, app: Taskline) -> None:
        self._app = app

    def find(
        self,
        *,
        queue: str | None = None,
        task: str | None = None,
        reason: str | None = None,
        since: float | None = None,
        before: float | None = None,
    ) -> Iterator[DeadLetter]:
        """The dead letters that fit, newest first, read page by page.

        `reason` is a part of the reason, in any case of letters; `since` and
        `before` are Unix seconds of when the message was buried. To change what
        is found, give the iterator to `requeue` or `purge`: they read it to its end first.
        """
        offset = 0
        part = None if reason is None else reason.casefold()
        before_this: set[str] = set()
        while True:
            page = self._app.transport.dead_letters(queue, _PAGE, offset)
            for letter in page:
                if letter.id in before_this:  # letters that came meanwhile have moved it here
                    continue
                if since is not None and letter.at < since:
                    return
                if (
                    (task is None or letter.task == task)
                    and (part is None or part in letter.reason.casefold())
                    and (before is None or letter.at < before)
                ):
                    yield letter
            if len(page) < _PAGE:
                return
            offset += _PAGE
            before_this = {letter.id for letter in page}

    def requeue(self, letters: Iterable[DeadLetter | str]) -> list[str]:
        """Send these messages again, each as a first attempt; returns the ids that were sent.

        Takes letters or their ids. Left where they are: ids without a dead letter, and
        messages that cannot be read here (`describe` tells why). An expiry that has
        passed is dropped. The tasks are PENDING again, so that `get()` waits.
        """
        app = self._app
        sent: list[str] = []
        for page in _pages(letters):
            found = [
                (letter, message)
                for letter in _letters(app, page)
                for message in _revive(app, letter)
            ]
            if not found:
                continue
            done = set(app.transport.requeue([message for _, message in found]))
            again = [(letter, message) for letter, message in found if message.header.id in done]
            sent += [message.header.id for _, message in again]
            if app.backend is not None:
                _reopen(app, app.backend, again)
        return sent

    def purge(self, letters: Iterable[DeadLetter | str]) -> int:
        """Delete these dead letters for ever; returns how many there were."""
        return sum(
            self._app.transport.purge_dead(
                [each if isinstance(each, str) else each.id for each in page]
            )
            for page in _pages(letters)
        )

    def describe(self, letter: DeadLetter) -> dict[str, Any]:
        """What people want to see of a dead letter.

        `id, queue, task, reason, at, worker, attempt, deliveries, traceback, size` (bytes), and
        `args, kwargs, errors, sent, headers`, or `unreadable` with the cause in one line.
        """
        app = self._app
        known = msgspec.structs.asdict(letter)
        known["size"] = len(known.pop("frame"))
        try:
            header, body = app.codec.open(letter.frame)
            args, kwargs = app.codec.arguments(header, body)
        except SerializationError as error:
            known["unreadable"] = str(error)
            return known
        task = app.tasks.get(header.task)
        if task is not None:
            args, kwargs = task.signature.redacted(args, kwargs)
        known.update(
            task=header.task,
            args=list(args),
            kwargs=dict(kwargs),
            errors=list(header.errors),
            sent=header.sent,
            headers=header.headers,
        )
        return known


def _pages(letters: Iterable[DeadLetter | str]) -> Iterator[Sequence[DeadLetter | str]]:
    """The letters in pages; of an iterator, which may be reading them, the ids only."""
    if not isinstance(letters, Sequence):
        letters = [each if isinstance(each, str) else each.id for each in letters]
    return chunks(letters, _PAGE)


def _letters(app: Taskline, page: Iterable[DeadLetter | str]) -> Iterator[DeadLetter]:
    for each in page:
        letter = app.transport.dead_letter(each) if isinstance(each, str) else each
        if letter is not None:
            yield letter


def _revive(app: Taskline, letter: DeadLetter) -> list[Message]:
    """The message of a dead letter as a first attempt; empty when it cannot be read."""
    try:
        header, body = app.codec.open(letter.frame)
    except SerializationError:
        return []
    now = app.now()
    expired = header.expires is not None and header.expires <= now
    header = msgspec.structs.replace(
        header,
        # What was revoked before does not concern it. Copies of a step are told by this.
        sent=header.sent if header.flow is not None else max(header.sent, now),
        attempt=1,
        eta=None,
        expires=None if expired else header.expires,
        first_run=None,
        waited=0.0,
        queue=app.queues.origin(letter.queue, header.queue),
    )
    return [app.codec.reframe(header, body)]


def _reopen(app: Taskline, backend: Backend, again: Sequence[tuple[DeadLetter, Message]]) -> None:
    """Let the tasks be PENDING again, and their workflows go on."""
    # With the fence of the run to come, so that it goes over the old failure,
    # and never over what that run may have stored by now.
    backend.store(
        [
            outcome(
                app.codec,
                message.header,
                PENDING,
                deliveries=max(letter.deliveries, message.header.deliveries) + 1,
                ttl=app.settings.result_ttl,
            )
            for letter, message in again
        ]
    )
    steps = {message.header.flow.id for _, message in again if message.header.flow is not None}
    if steps:
        from taskline.workflows.plan import reopen

        reopen(app, backend, steps)
