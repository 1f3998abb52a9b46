"""Pausing queues: workers take nothing of a paused one, until it is resumed or its time is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from taskline.control.documents import why_no_keys
from taskline.control.state import State, States
from taskline.options import duration, queue_name

if TYPE_CHECKING:
    from taskline.app import Taskline


def pause(app: Taskline, queue: str, seconds: float | None) -> None:
    """See `Taskline.pause_queue`."""
    queue = queue_name("queue", queue)
    end = None if seconds is None else app.now() + duration("seconds", seconds)

    def alter(state: State) -> State:
        ends = _live(app, state)
        ends[queue] = end
        return _with(state, ends)

    States(app).change(alter)


def resume(app: Taskline, queue: str) -> bool:
    """See `Taskline.resume_queue`."""
    queue = queue_name("queue", queue)
    was_paused = False

    def alter(state: State) -> State:
        nonlocal was_paused
        ends = _live(app, state)
        was_paused = queue in ends
        ends.pop(queue, None)
        return _with(state, ends)

    States(app).change(alter)
    return was_paused


def paused(app: Taskline) -> dict[str, float | None]:
    """See `Taskline.paused_queues`."""
    return {} if why_no_keys(app) else _live(app, States(app).get())


def _live(app: Taskline, state: State) -> dict[str, float | None]:
    return {queue: state.ends.get(queue) for queue in sorted(state.paused_at(app.now()))}


def _with(state: State, ends: dict[str, float | None]) -> State:
    return msgspec.structs.replace(
        state,
        paused=frozenset(ends),
        ends={queue: end for queue, end in ends.items() if end is not None},
    )
