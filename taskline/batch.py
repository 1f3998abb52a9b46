"""`with app.batch()`: many messages in few round trips, or within a transaction of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any

from taskline.errors import ConfigurationError, NotSupported
from taskline.message import Message
from taskline.result import AsyncResult, ResultSet

if TYPE_CHECKING:
    from taskline.app import Taskline

CHUNK = 1000
"""How many messages leave in one call of the transport."""


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
        batch = self._of(app)
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
        step = len(self._messages) if self._name else CHUNK
        for start in range(0, len(self._messages), step or 1):
            chunk = self._messages[start : start + step]
            results = [
                self._promised.get(each.header.id)
                or AsyncResult(self._app, each.header.id, header=each.header)
                for each in chunk
            ]
            if self._name:
                self._app.transport.send_within(self._transaction, chunk)
            elif self._promised:
                from taskline.claims import deliver

                deliver(self._app, chunk, results)
            else:
                self._app.send(chunk)
            self._results._extend(results)

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
