"""How a coroutine is told that its soft time limit has passed, and how it waits for a thread."""

from __future__ import annotations

import sys
import types
from asyncio import CancelledError, create_task, current_task, to_thread, wait
from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

from taskline.errors import SoftTimeout
from taskline.worker.execute import Job

T = TypeVar("T")


class SoftCancellation(SoftTimeout, CancelledError):
    """`SoftTimeout` as a coroutine gets it: a cancellation as well.

    So `except SoftTimeout` catches it, and what knows only of cancellations, such as
    `asyncio.TaskGroup`, ends its own tasks and lets it through.
    """


@types.coroutine
def steered(awaitable: Awaitable[Any], job: Job) -> Generator[Any, Any, Any]:
    """Await it; the cancellation that stands for the job's soft limit is raised as that in it.

    As `await` does (PEP 380), but for what is thrown in.
    """
    inner: Any = awaitable.__await__()
    told = False
    try:
        waits_for = inner.send(None)
        while True:
            try:
                value = yield waits_for
            except GeneratorExit:
                inner.close()
                raise
            except CancelledError as cancelled:
                soft = None if told else job.interrupted
                if isinstance(soft, SoftTimeout):
                    told = True
                    _uncancel()
                    waits_for = inner.throw(SoftCancellation(*soft.args))
                else:
                    waits_for = inner.throw(cancelled)
            except BaseException as error:
                waits_for = inner.throw(error)
            else:
                waits_for = inner.send(value)
    except StopIteration as ended:
        return ended.value


def _uncancel() -> None:
    """The task may go on, and what it awaits from now on is not cancelled (Python 3.11)."""
    task = current_task()
    if sys.version_info >= (3, 11) and task is not None:
        task.uncancel()


async def to_its_end(work: Callable[..., T], *args: Any) -> T:
    """What `work` returns or raises, in a thread. A cancellation is raised when it has ended.

    Till then the job belongs to that thread: nobody else may give it a verdict.
    """
    working = create_task(to_thread(work, *args))
    cancelled: CancelledError | None = None
    while not working.done():
        try:
            await wait([working])
        except CancelledError as error:
            cancelled = error
    value = working.result()
    if cancelled is not None:
        raise cancelled
    return value
