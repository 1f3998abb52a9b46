"""A worker that a test turns by hand, and that can be killed between any two calls it makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from taskline.app import Taskline
from taskline.backends.base import Backend
from taskline.transports.base import Transport
from taskline.worker.execute import Runner
from taskline.worker.io import IOThread
from taskline.worker.process import served_queues


class Killed(BaseException):
    """The worker died here. No `except Exception` survives it, as none survives SIGKILL."""


class Fate:
    """Lets a worker die at its call of this number (the first is 1): `before` it or `after`."""

    def __init__(self, number: int = 0, moment: str = "before") -> None:
        self.number = number
        self.moment = moment
        self.calls: list[str] = []

    def wrap(self, inner: Any, changing: frozenset[str]) -> Any:
        """`inner`, whose `changing` calls are counted."""
        return _Mortal(inner, self, changing)

    def pass_on(self, name: str, call: Callable[[], Any]) -> Any:
        self.calls.append(name)
        now = len(self.calls) == self.number
        if now and self.moment == "before":
            raise Killed(name)
        answer = call()
        if now:
            raise Killed(name)
        return answer


class _Mortal:
    def __init__(self, inner: Any, fate: Fate, changing: frozenset[str]) -> None:
        self.inner = inner
        self._fate = fate
        self._changing = changing

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if name == "shares":
            return lambda backend: found(getattr(backend, "inner", backend))
        if name not in self._changing:
            return found
        return lambda *args, **kwargs: self._fate.pass_on(name, lambda: found(*args, **kwargs))


SENDING = frozenset({"send", "ack", "replace", "bury", "release"})
STORING = frozenset({"store", "count", "count_all"})


class Hand:
    """One worker process without threads: `turn` is its I/O thread, and its slot."""

    patience: ClassVar[float] = 0.0
    """Seconds in which nothing comes where nothing is left: what a broker takes to hand over."""

    def __init__(
        self,
        app: Taskline,
        name: str = "hand",
        *,
        fate: Fate | None = None,
        transport: Transport | None = None,
        backend: Backend | None = None,
    ) -> None:
        fate = fate or Fate()
        self.app = app
        self.name = name
        self.runner = Runner(app, name, keep_results=app.settings.backend is not None)
        self.io = IOThread(
            app,
            self.runner,
            consumer=name,
            queues=served_queues(app),
            weights={},
            lease=30.0,
            max_deliveries=5,
            prefetch=100,
            slots=1,
            async_slots=1,
        )
        self.transport = transport or app.open_transport()
        self.backend = backend or app.open_backend()
        self.io.begin(
            fate.wrap(self.transport, SENDING),
            None if self.backend is None else fate.wrap(self.backend, STORING),
        )

    @property
    def held(self) -> set[str]:
        """The ids of the messages that this worker holds."""
        return {delivery.id for delivery in self.io.held}

    def turn(self) -> bool:
        """Receive, run and settle what is there; whether there was anything to run."""
        self.io.step(0.0)
        ran = False
        exchange = self.io.exchange
        while exchange.ready.qsize():
            job = exchange.ready.get_nowait()
            if job is None or job.lost:
                continue
            exchange.taken += 1
            if self.runner.may_begin(job, self.app.clock.time()):
                job.begin(self.app.clock.time(), self.app.clock.monotonic)
                self.runner.run(job)
            exchange.done.append(job)
            ran = True
        return ran

    def work(self, turns: int = 400) -> None:
        """Turn until nothing is left to do; an error when that does not come."""
        clock = self.app.clock
        done, idle, since = 0, 0, clock.monotonic()
        while done < turns:
            if self.turn() or self.held:
                done, idle, since = done + 1, 0, clock.monotonic()
                continue
            idle += 1
            if idle >= 3 and clock.monotonic() - since >= self.patience:
                return
            if self.patience:
                clock.sleep(0.01)
        raise AssertionError(f"still at work after {turns} turns, holding {self.held}")

    def bury(self) -> None:
        """After `Killed`: the supervisor hands back what it held."""
        started = [slot.current.delivery.id for slot in self.io.slots if slot.current is not None]
        supervisor = self.app.open_transport()
        supervisor.recover(self.name, started)
        supervisor.close()
        self.close()

    def close(self) -> None:
        """Give back its connections."""
        self.transport.close()
        if self.backend is not None:
            self.backend.close()
