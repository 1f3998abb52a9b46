"""`with app.batch()`: many messages in few round trips, or within a transaction of the user's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any

from taskline.chunking import chunks
from taskline.errors import ConfigurationError, NotSupported, TransportError
from taskline.message import Message
from taskline.result import AsyncResult, ResultSet

if TYPE_CHECKING:
    from taskline.app import Taskline

CHUNK = 1000
"""How many messages leave in one call of the transport."""
AHEAD = 2 * 1024 * 1024
"""Bytes of messages that may be under way in several such calls, where the transport can."""


class Batch:
    """What `app.batch()` gives: collects messages of one context until its block ends.

    `transaction` is one of the user's own, by the argument `name`.
    """

    def __init__(self, app: Taskline, name: str = "", transaction: Any = None) -> None:
        self._app = app
        self._name = name
        self._transaction = transaction
        self._open = False

    def take(
        self,
        app: Taskline,
        messages: Sequence[Message],
        results: Sequence[AsyncResult[Any]] | None = None,
    ) -> bool:
        """Keep these messages for later, if they are this app's and the block is not over.

        `results`, if some of the messages are unique: what their senders hold.
        """
        batch = self if self._app is app and self._open else self._of(app)
        if batch is None:
            return False
        if results is not None:
            if batch._name:
                raise ConfigurationError(
                    "a unique, throttled or debounced call, or one with an idempotency_key, cannot "
                    "be a part of your transaction, as its key would not be: send it after the "
                    "commit, or with unique=False"
                )
            for message, result in zip(messages, results, strict=True):
                batch._promised[message.header.id] = result
        batch._messages.extend(messages)
        return True

    def note(self, app: Taskline, result: AsyncResult[Any]) -> None:
        """Add what eager mode has run already to the results."""
        batch = self._of(app)
        if batch is not None:
            batch._results._extend([result])

    def _of(self, app: Taskline) -> Batch | None:
        """The innermost open batch of this app."""
        batch: Batch | None = self
        while batch is not None and (batch._app is not app or not batch._open):
            batch = batch._outer
        return batch

    def __enter__(self) -> ResultSet[Any]:
        if self._name and not self._app.settings.eager:
            self._check()
        self._outer = _batch.get()
        self._token = _batch.set(self)
        self._open = True
        self._messages: list[Message] = []
        self._promised: dict[str, AsyncResult[Any]] = {}
        """The results of messages that may become those of others, by the messages' ids."""
        self._results: ResultSet[Any] = ResultSet(self._app, [])
        return self._results

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open = False
        _batch.reset(self._token)
        if error is not None:
            return
        if self._promised:
            self._deliver()
        elif not self._name:
            send_many(self._app, self._messages, self._extend)
        elif self._messages:
            self._app.transport.send_within(self._transaction, self._messages)
            self._extend(self._messages)

    def _deliver(self) -> None:
        """Send what is in part unique."""
        from taskline.claims import deliver

        for chunk in chunks(self._messages, CHUNK):
            results = [
                self._promised.get(each.header.id)
                or AsyncResult(self._app, each.header.id, each.header)
                for each in chunk
            ]
            deliver(self._app, chunk, results)
            self._results._extend(results)

    def _extend(self, messages: Iterable[Message]) -> None:
        """Add those of messages that are stored to the results."""
        app = self._app
        self._results._extend(
            [AsyncResult(app, header.id, header) for header in [each.header for each in messages]]
        )

    def _check(self) -> None:
        """Raise what can be told before the block about its transaction."""
        transport = self._app.transport
        wanted = transport.capabilities.outbox
        if wanted and wanted != self._name:
            raise NotSupported(
                f"the {transport.scheme} transport takes {wanted}= for a transaction of yours, "
                f"not {self._name}="
            )
        transport.send_within(self._transaction, ())


_batch: ContextVar[Batch | None] = ContextVar("taskline_batch", default=None)

current_batch = _batch.get
"""The batch of this context, or None."""


def send_many(
    app: Taskline, messages: Iterable[Message], stored: Callable[[list[Message]], object]
) -> None:
    """Send messages a thousand at a time, in order, and tell `stored` of each thousand that is.

    In a batch they are told of when it has taken them. When sending some fails, or to take the
    next from `messages`, no more are sent, and what was under way is waited for.
    """
    under_way: deque[tuple[list[Message], int, Callable[[], None]]] = deque()
    ahead = 0

    def settle() -> None:
        nonlocal ahead
        chunk, size, wait = under_way.popleft()
        ahead -= size
        wait()
        if app.hooks.of_sends:
            app.hooks.call("after_send", [each.header for each in chunk])
        stored(chunk)

    every = iter(messages)
    try:
        while chunk := list(islice(every, CHUNK)):
            batch = current_batch()
            if batch is not None and batch.take(app, chunk):
                stored(chunk)
                continue
            size = sum([len(each.frame) for each in chunk])
            under_way.append((chunk, size, app.transport.begin_send(chunk)))
            ahead += size
            while ahead > AHEAD:
                settle()
        while under_way:
            settle()
    except Exception:
        while under_way:
            with suppress(TransportError):
                settle()
        raise
