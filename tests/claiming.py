"""What the tests of unique calls share: an app whose clock stands still, senders that die."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from taskline import Taskline
from taskline.clock import ManualClock
from taskline.message import new_id
from taskline.testing.stepping import Fate

OF_THE_BROKER = frozenset({"send", "delete"})
OF_RESULTS = frozenset({"store", "fetch"})
OF_KEYS = frozenset({"get", "set", "swap", "ttl"})


def new_app(url: str = "", **settings: Any) -> Taskline:
    url = url or f"memory://{new_id()}"
    return Taskline("shop", broker=url, backend=url, clock=ManualClock(), **settings)


class _Backend:
    def __init__(self, inner: Any, fate: Fate) -> None:
        self._inner = inner
        self._fate = fate
        self._results = fate.wrap(inner, OF_RESULTS)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._results, name)

    def keys(self) -> Any:
        return self._fate.wrap(self._inner.keys(), OF_KEYS)


class _Interrupted(Fate):
    """Others do something at the call of this number."""

    def __init__(self, number: int, moment: str, meanwhile: Callable[[], None]) -> None:
        super().__init__(number, moment)
        self._meanwhile = meanwhile

    def pass_on(self, name: str, call: Callable[[], Any]) -> Any:
        self.calls.append(name)
        now = len(self.calls) == self.number
        if now and self.moment == "before":
            self._meanwhile()
        answer = call()
        if now and self.moment == "after":
            self._meanwhile()
        return answer


@contextmanager
def sender(
    app: Taskline,
    number: int = 0,
    moment: str = "before",
    meanwhile: Callable[[], None] | None = None,
) -> Iterator[Fate]:
    """Who sends in this block dies at its call of this number; `calls` of the fate has them all.

    With `meanwhile` it does not die, but others do that.
    """
    connections, fate = app._connections, Fate(number, moment)
    if meanwhile is not None:
        fate = _Interrupted(number, moment, meanwhile)
    transport, backend = connections.transport(), connections.backend()
    connections.current = fate.wrap(transport, OF_THE_BROKER)
    connections._backend = _Backend(backend, fate)  # type: ignore[assignment]
    try:
        yield fate
    finally:
        connections.current, connections._backend = transport, backend


def advance(app: Taskline, seconds: float) -> None:
    assert isinstance(app.clock, ManualClock)
    app.clock.advance(seconds)
