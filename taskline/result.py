"""`AsyncResult` and `ResultSet`: what a caller holds of tasks that run elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast, overload

import msgspec

from taskline.backends.base import Revocation
from taskline.chunking import chunks
from taskline.context import Progress, current_task
from taskline.errors import NoResult, ResultTimeout, TaskExpired, TaskRevoked
from taskline.failures import rebuild_error
from taskline.message import (
    EXPIRED,
    FAILURE,
    FINAL_STATES,
    PENDING,
    RETRY,
    REVOKED,
    STARTED,
    SUCCESS,
    Header,
    Outcome,
    OutcomeHeader,
)
from taskline.outcomes import outcome

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.streaming import Stream

R = TypeVar("R", covariant=True)

REVOCATION_TTL = 30 * 86_400.0
"""For how many seconds workers that start later still learn of a revocation."""

_CHUNK = 1000


# Unknown to the garbage collector, which would look again and again at the hundred thousand
# that a program may hold: nothing in one leads back to it.
class AsyncResult(msgspec.Struct, Generic[R], eq=False, gc=False):
    """One task that was sent: its state and, in the end, its value or its exception.

    Made by `delay()` and the like, or by `app.AsyncResult(id)`. Reading needs a result backend;
    without one every reading raises `NoResult`.
    """

    app: Taskline
    id: str
    _header: Header | None = None
    _final: Outcome | None = None
    duplicate: bool = False
    """Whether another call had its key: then that one's result, or none if it was dropped."""

    @property
    def state(self) -> str:
        """PENDING, STARTED, RETRY, SUCCESS, FAILURE, REVOKED or EXPIRED.

        PENDING also stands for ids that nobody sent and outcomes that have expired.
        """
        found = self._read()
        return PENDING if found is None else found.state

    @property
    def result(self) -> R | Exception | None:
        """The value after SUCCESS, the exception after FAILURE, None otherwise."""
        found = self._read()
        if found is None or found.state not in (SUCCESS, FAILURE):
            return None
        return (
            self._value(found) if found.state == SUCCESS else exception_of(self._opened(found)[0])
        )

    @property
    def traceback(self) -> str | None:
        """The text of the traceback in the worker, after a failed attempt."""
        found = self._read()
        if found is None:
            return None
        error = self._opened(found)[0].error
        return None if error is None else error.get("traceback")

    @property
    def info(self) -> dict[str, Any]:
        """What is known of the run: `state, task, queue, attempt, deliveries, worker,
        started, finished, retry_at` (Unix seconds), `errors` (a line for each failed
        attempt), `error, parent, root, progress`.
        """
        found = self._read()
        if found is None:
            return {"id": self.id, "state": PENDING, "task": self._name or "", "errors": []}
        known = msgspec.structs.asdict(self._opened(found)[0])
        for field in ("v", "serializer", "compression"):
            del known[field]
        return known

    @property
    def children(self) -> list[AsyncResult[Any]]:
        """The results of what the task has sent itself; known once it has ended.

        A thousand at most are remembered.
        """
        found = self._read()
        ids = [] if found is None else self._opened(found)[0].children
        return [AsyncResult(self.app, each) for each in ids]

    def progress(self) -> Progress | None:
        """What the task has told of its progress last, `(done, total, message)`, or None.

        It is about a second old while the task runs, and remains after its end.
        """
        found = self._read()
        told = None if found is None else self._opened(found)[0].progress
        return None if told is None else Progress(**told)

    @overload
    def get(self, timeout: float | None = None, propagate: Literal[True] = True) -> R: ...
    @overload
    def get(self, timeout: float | None, propagate: bool) -> R | Exception: ...
    @overload
    def get(self, timeout: float | None = None, *, propagate: bool) -> R | Exception: ...
    def get(self, timeout: float | None = None, propagate: bool = True) -> R | Exception:
        """Wait for the task and return its value; raise its exception if it failed.

        Waits at most `timeout` seconds, for ever by default, and raises
        `ResultTimeout` then. With `propagate=False` the exception is returned. A
        revoked or expired task raises `TaskRevoked` or `TaskExpired`.
        """
        if self._final is None:
            found = self._kept().waiters.wait((self.id,), timeout)
            self._final = found.get(self.id) or self._last_look(timeout)
        final = self._final
        if propagate or final.state == SUCCESS:
            return self._value(final)
        return exception_of(self._opened(final)[0])

    async def aget(self, timeout: float | None = None) -> R:
        """As `get`, for coroutines: does not block the event loop."""
        final = self._final
        if final is None:
            import asyncio

            waiters = await asyncio.to_thread(lambda: self._kept().waiters)
            found = await waiters.wait_async((self.id,), timeout)
            final = found.get(self.id)
            if final is None:
                final = await asyncio.to_thread(self._last_look, timeout)
            self._final = final
        return self._value(final)

    def stream(self, start: int = 0, timeout: float | None = None) -> Stream:
        """The items of a generator task from number `start` on, as they come.

        `for item in result.stream()`, or `async for`. It ends when the task has ended, and
        raises what `get` would raise if it failed. When the task is tried again, what it
        yields then takes the place of what it yielded before: a reader goes on at its index.
        Raises `ResultTimeout` when no item came for `timeout` seconds.
        """
        from taskline.streaming import Stream

        self._kept()
        return Stream(self, start, timeout)

    def ready(self) -> bool:
        """Whether the task has come to its end, whichever."""
        return self.state in FINAL_STATES

    def successful(self) -> bool:
        """Whether the task has ended with a value."""
        return self.state == SUCCESS

    def failed(self) -> bool:
        """Whether the task has ended with an exception."""
        return self.state == FAILURE

    def forget(self) -> None:
        """Delete the stored outcome; the task itself is not touched."""
        self._final = None
        self.app.require_backend().forget([self.id])

    def revoke(self, terminate: bool = False) -> bool:
        """Keep the task from running; with `terminate`, stop it if it runs.

        True when the task was still waiting and has been removed: it is REVOKED
        now. False when workers have been told, and will see to it.
        """
        app = self.app
        backend = app.require_backend()
        if self.ready():
            return False
        backend.revoke([Revocation(self.id, terminate)], REVOCATION_TTL)
        transport = app.transport
        if self._is_step():  # workers see to it that its workflow ends too
            return False
        if not transport.capabilities.delete or not transport.delete([self.id]):
            return False
        known = self._header or Header(1, self.id, "", app.settings.queue, 0.0)
        # It goes over what an earlier attempt has stored, whatever this machine's clock says.
        now, stored = app.now(), backend.fetch([self.id]).get(self.id)
        sent, deliveries = (now, 0) if stored is None else max((now, 0), stored.fence)
        header = msgspec.structs.replace(known, id=self.id, sent=sent)
        ttl = self._ttl(header)
        final = outcome(app.codec, header, REVOKED, deliveries=deliveries, finished=now, ttl=ttl)
        backend.store([final])
        return True

    def _is_step(self) -> bool:
        """Whether it is a step of a workflow."""
        if self._header is not None or "-" not in self.id:
            return False
        from taskline.workflows.plan import plan_id

        parts = self.id.split("-")
        plans = [plan_id("-".join(parts[:count])) for count in range(1, len(parts))]
        return bool(self.app.require_backend().fetch(plans))

    def requeue(self) -> None:
        """Send the failed task again from the dead letters, as a first attempt.

        Raises `NoResult` when there is no dead letter of this id, and
        `SerializationError` when its message cannot be read here.
        """
        letter = self.app.transport.dead_letter(self.id)
        if letter is None:
            raise NoResult(f"task {self.id} is not among the dead letters: nothing to requeue")
        self.app.codec.open(letter.frame)
        self.app.dead.requeue([letter])
        self._final = None

    def __repr__(self) -> str:
        name = f" {self._name}" if self._name else ""
        return f"<AsyncResult{name} {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsyncResult) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def _name(self) -> str | None:
        return None if self._header is None else self._header.task

    def _kept(self) -> Taskline:
        """The app, if this task's outcome is kept at all."""
        self.app.require_backend()
        if self._header is not None and self._ttl(self._header) == 0:
            raise NoResult(f"task {self._header.task} has result_ttl=0: its outcome is not kept")
        return self.app

    def _ttl(self, header: Header) -> float:
        return self.app.settings.result_ttl if header.result_ttl is None else header.result_ttl

    def _read(self) -> Outcome | None:
        """What the backend knows now; a final outcome is asked for only once."""
        if self._final is not None:
            return self._final
        found = self._kept().require_backend().fetch([self.id]).get(self.id)
        if found is not None and found.state in FINAL_STATES:
            self._final = found
        return found

    def _last_run(self) -> tuple[str, int]:
        """The state, and which handing-over it tells of."""
        found = self._read()
        return (PENDING, 0) if found is None else (found.state, found.deliveries)

    def _opened(self, found: Outcome) -> tuple[OutcomeHeader, bytes]:
        return self.app.codec.open_outcome(found.frame)

    def _value(self, final: Outcome) -> R:
        """The value after SUCCESS; raises what `get()` raises for any other end."""
        header, body = self._opened(final)
        if header.state == SUCCESS:
            if header.refers is not None:
                from taskline.workflows.inputs import load, whole

                return cast(R, whole(load(self.app, header.refers, {})))
            value: R = self.app.codec.loads(header, body)
            task = self.app.tasks.get(header.task)
            return value if task is None else task.signature.convert_result(value)
        raise exception_of(header)

    def _last_look(self, timeout: float | None) -> Outcome:
        """The final outcome if it came just now; raises `ResultTimeout` otherwise."""
        found = self._read()
        if self._final is not None:
            return self._final
        state = PENDING if found is None else found.state
        hint = self._hint(state, None if found is None else self._opened(found)[0])
        name = f"{self._name} " if self._name else ""
        raise ResultTimeout(
            f"task {name}{self.id} is still {state} after {timeout or 0:g} seconds: {hint}"
        )

    def _hint(self, state: str, known: OutcomeHeader | None) -> str:
        now = self.app.now()
        if known is not None and state == STARTED:
            since = "" if known.started is None else f" for {max(0.0, now - known.started):.1f} s"
            return f"it runs{since} on {known.worker or 'a worker'}; wait longer"
        if known is not None and state == RETRY:
            due = "" if known.retry_at is None else f" in {max(0.0, known.retry_at - now):.1f} s"
            last = known.errors[-1] if known.errors else "it failed"
            return f"attempt {known.attempt} ended with {last}; the next is due{due}"
        header = self._header
        if header is not None and header.eta is not None and header.eta > now:
            return f"it is due in {header.eta - now:.1f} s"
        queue = f"queue {header.queue!r}" if header is not None else "its queue"
        if current_task:
            return f"does a worker serve {queue}? The task that waits for it here keeps a slot"
        return f"does a worker serve {queue}?"


def exception_of(header: OutcomeHeader) -> Exception:
    """What `get()` raises for a task that did not succeed."""
    name = f"task {header.task} {header.id}"
    if header.state == REVOKED:
        why = "" if header.error is None else f": {header.error.get('message')}"
        return TaskRevoked(f"{name} was revoked{why}")
    if header.state == EXPIRED:
        return TaskExpired(f"{name} was not started before it expired")
    return rebuild_error(header.error or {"message": f"{name} failed"})


class ResultSet(Generic[R]):
    """The results of many calls, in the order of the calls."""

    def __init__(self, app: Taskline, results: Iterable[AsyncResult[R]]) -> None:
        self.app = app
        self._results = list(results)

    def _extend(self, results: Iterable[AsyncResult[Any]]) -> None:
        self._results.extend(results)

    @property
    def ids(self) -> list[str]:
        """The tasks' ids, in the order of the calls."""
        return [each.id for each in self._results]

    def __len__(self) -> int:
        return len(self._results)

    def __iter__(self) -> Iterator[AsyncResult[R]]:
        return iter(self._results)

    def __getitem__(self, index: int) -> AsyncResult[R]:
        return self._results[index]

    def get(self, timeout: float | None = None) -> list[R]:
        """Wait for all tasks, `timeout` seconds in all, and return their values in order.

        Raises the exception of the first task, in order, that did not succeed,
        once all are final; `ResultTimeout` when some are not by then.
        """
        until = None if timeout is None else self.app.clock.monotonic() + timeout
        for chunk in self._open_chunks():
            left = None if until is None else max(0.0, until - self.app.clock.monotonic())
            found = chunk[0]._kept().waiters.wait([each.id for each in chunk], left)
            self._keep(chunk, found)
            if len(found) < len(chunk) and any(each._final is None for each in chunk):
                raise self._timed_out(timeout)
        return [each.get() for each in self._results]

    async def aget(self, timeout: float | None = None) -> list[R]:
        """As `get`, for coroutines: does not block the event loop."""
        until = None if timeout is None else self.app.clock.monotonic() + timeout
        for chunk in self._open_chunks():
            left = None if until is None else max(0.0, until - self.app.clock.monotonic())
            waiters = chunk[0]._kept().waiters
            found = await waiters.wait_async([each.id for each in chunk], left)
            self._keep(chunk, found)
            if len(found) < len(chunk) and any(each._final is None for each in chunk):
                raise self._timed_out(timeout)
        return [await each.aget() for each in self._results]

    def completed(self) -> int:
        """How many of the tasks are final by now."""
        for chunk in self._open_chunks():
            found = chunk[0]._kept().require_backend().fetch([each.id for each in chunk])
            self._keep(chunk, {k: v for k, v in found.items() if v.state in FINAL_STATES})
        return sum(each._final is not None for each in self._results)

    def ready(self) -> bool:
        """Whether all tasks are final."""
        return self.completed() == len(self)

    def __repr__(self) -> str:
        return f"<ResultSet of {len(self)}>"

    def _open_chunks(self) -> Iterator[Sequence[AsyncResult[R]]]:
        """Those not known to be final, few enough at a time for one question."""
        unknown = [each for each in self._results if each._final is None]
        return chunks(unknown, _CHUNK)

    def _keep(self, chunk: Sequence[AsyncResult[R]], found: dict[str, Outcome]) -> None:
        for each in chunk:
            each._final = found.get(each.id)

    def _timed_out(self, timeout: float | None) -> ResultTimeout:
        unfinished = [each for each in self._results if each._final is None]
        return ResultTimeout(
            f"{len(unfinished)} of {len(self)} tasks are not final after {timeout or 0:g} seconds, "
            f"{unfinished[0].id} among them: do workers serve their queues?"
        )
