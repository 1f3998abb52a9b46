"""`app.schedules`: what people see of schedules, and change while workers run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from taskline import claims
from taskline.calls import Calls
from taskline.config import nearest
from taskline.errors import ConfigurationError
from taskline.result import AsyncResult
from taskline.schedule.entry import LATE, Schedule, ScheduleOptions, schedule
from taskline.schedule.store import Book, Hold, Progress, ScheduleStore

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from taskline.app import Taskline

ACTIVE, PAUSED, FINISHED = "active", "paused", "finished"


class ScheduleInfo(msgspec.Struct, kw_only=True):
    """A schedule as `list` shows it. Moments are Unix seconds."""

    name: str
    task: str
    when: str
    state: str
    """`active`, `paused` or `finished`."""
    stored: bool
    """Whether it was added at run time; the others are declared in the code."""
    next: float | None = None
    """When it is due next."""
    last: float | None = None
    """The last slot for which a message was sent, and that message's task id."""
    last_id: str = ""
    sent: int = 0
    """How many messages it has sent."""
    tz: str = "UTC"


class Schedules:
    """The schedules of an app. Also `app.schedules`.

        app.schedules.add("night", report, cron="0 3 * * *", tz="Europe/Berlin")
        app.schedules.pause("night")

    What is stored here is seen by all workers of the app within seconds. Every call
    raises `ConfigurationError` when the app has no backend that keeps keys, and for a
    name that no schedule has.
    """

    def __init__(self, app: Taskline) -> None:
        self._app = app
        self._store = ScheduleStore(app)

    def add(
        self,
        name: str,
        task: Calls[..., Any] | str,
        *,
        replace: bool = False,
        **options: Unpack[ScheduleOptions],
    ) -> Schedule:
        """Store a schedule; see `Taskline.periodic` for the options.

        `task` may be a name whose code is not here. With `replace` one that was stored
        under this name before is replaced, and begins anew. Raises `ConfigurationError`
        for a wrong option or a name that is taken, `InvalidArguments` for arguments that
        do not fit the task, and `SerializationError` for some that cannot be stored.
        """
        app = self._app
        added = app.now()
        found = schedule(name, task if isinstance(task, str) else task.name, options)
        found = msgspec.structs.replace(found, added=added)
        if found.times.after(added, added) is None:
            raise ConfigurationError(f"{found.times}: it would never be due")
        found.check(app)
        if name in app.periodics:
            raise ConfigurationError(f"the schedule {name!r} is declared in the code: rename one")
        with self._store.change() as book:
            if name in book.schedules and not replace:
                raise ConfigurationError(
                    f"there is a schedule {name!r}: remove it first, or replace it"
                )
            book.schedules[name] = found
            book.holds.pop(name, None)
        return found

    def remove(self, name: str) -> None:
        """Delete a stored schedule. One that is declared in the code can be paused instead."""
        with self._store.change() as book:
            if name in self._app.periodics and name not in book.schedules:
                raise ConfigurationError(
                    f"the schedule {name!r} is declared in the code: pause it, or remove it there"
                )
            self._find(name, book)
            del book.schedules[name]
            book.holds.pop(name, None)

    def pause(self, name: str) -> None:
        """Send nothing for this schedule until `resume`, also when workers are restarted."""
        with self._store.change() as book:
            self._find(name, book)
            book.holds[name] = Hold(paused=True)

    def resume(self, name: str) -> None:
        """Send again, from the next slot on: those of the pause are not caught up."""
        with self._store.change() as book:
            self._find(name, book)
            if name in book.holds:
                book.holds[name] = Hold(until=self._app.now())

    def run(self, name: str) -> AsyncResult[Any]:
        """Send a message of this schedule now, paused or not. It does not count as a repeat."""
        app = self._app
        message = self._find(name, self._store.book()).now(app)
        result: AsyncResult[Any] = AsyncResult(app, message.header.id, message.header)
        if message.header.unique is None:
            app.send((message,))
        else:
            claims.deliver(app, (message,), (result,))
        return result

    def list(self) -> list[ScheduleInfo]:
        """All schedules, sorted by name: those declared where this is called, and the stored."""
        book, progress = self._store.book(), self._store.progress()
        everything = {**book.schedules, **declared(self._app)}
        return [
            self._info(each, book.holds.get(name, Hold()), progress.get(name))
            for name, each in sorted(everything.items())
        ]

    def _info(self, each: Schedule, hold: Hold, progress: Progress | None) -> ScheduleInfo:
        now = self._app.now()
        if progress is None or not continues(each, progress):
            since = now if each.added is None else each.added
            progress = Progress(since, since)
        upcoming = None
        if each.repeats is None or progress.sent < each.repeats:
            last = max(progress.last, hold.until, now - LATE)
            upcoming = each.times.after(last, progress.since)
        state = FINISHED if upcoming is None else PAUSED if hold.paused else ACTIVE
        return ScheduleInfo(
            name=each.name,
            task=each.task,
            when=str(each.times),
            state=state,
            stored=each.added is not None,
            next=upcoming if state == ACTIVE else None,
            last=progress.slot,
            last_id=progress.id,
            sent=progress.sent,
            tz=each.times.tz,
        )

    def _find(self, name: str, book: Book) -> Schedule:
        everything = {**book.schedules, **declared(self._app)}
        if name not in everything:
            hint = nearest(name, everything) if everything else ": there are none"
            raise ConfigurationError(f"no schedule {name!r}{hint}")
        return everything[name]

    def __repr__(self) -> str:
        return f"<Schedules of {self._app.name}>"


def continues(each: Schedule, progress: Progress) -> bool:
    """Whether this is the progress of this schedule, not of an earlier one of its name."""
    return each.added is None or each.added == progress.since


def declared(app: Taskline) -> dict[str, Schedule]:
    """The schedules that the code declares, by name."""
    return {name: each for name, (each, _) in app.periodics.items()}
