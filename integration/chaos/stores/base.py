"""One store under test, as the driver sees it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from integration.chaos.tasks import GRAVE, LOAD, Config
from integration.servers.process import Server
from integration.servers.proxy import DELAY, HANG, PASS, REFUSE, Proxy
from taskline import Taskline

DRIVER, PRODUCERS = "driver", "producers"
QUIET = 15.0
"""Seconds in which a broker that cannot be looked into hands over what there is."""
LINKS = ("north", "south", "grave", PRODUCERS)
"""Who has a connection of its own to the servers, through a proxy that can break it."""


class Trouble(NamedTuple):
    """A fault of a store that has begun."""

    kind: str
    """`pause`: all of it stood still. `link`: somebody's connections were broken. `refuse`: what
    was to be stored was refused."""
    seconds: float
    """How long it lasts; 0 when it is over already."""
    end: Callable[[], bool]
    """Ends it; whether it has ended now (else it is to be asked again)."""
    link: str = ""
    """Whose connections; all when empty."""


class Store:
    """A broker and a backend. The driver opens and closes it."""

    name: ClassVar[str] = ""
    faults: ClassVar[Mapping[str, int]] = {}
    """Its own faults, and how often each is done, relative to those of processes."""
    batch: ClassVar[int] = 0
    """How many messages of a batch are stored in one step; 0 for all."""
    answers_lost: ClassVar[bool] = True
    """Whether a send may be stored although it raised: the answer was on its way."""
    rate: ClassVar[float] = 60.0
    """Tasks a second from each producer."""
    largest: ClassVar[int] = 300
    """The largest batch that is sent."""
    gap: ClassVar[float] = 1.0
    """How much longer than usual the time between two faults is."""
    skew: ClassVar[float] = 0.0
    """Seconds by which the clock of a worker may be wrong, before or behind."""
    drain: ClassVar[float] = 0.0
    """Seconds that running tasks have when others are to have their messages; see `moves`."""
    together: bool = False
    """Whether receipts and outcomes are one step."""

    lease: float = 2.0
    """Seconds."""

    def __init__(self, directory: Path, *, lease: float | None = None, pace: float = 1.0) -> None:
        """`pace`: less than 1 makes load and faults so much rarer."""
        self.directory = directory
        self.pace = pace
        if lease is not None:
            self.lease = lease

    def open(self) -> None:
        """Start its servers."""

    def close(self) -> None:
        """End them."""

    def __enter__(self) -> Store:
        self.open()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def urls(self, who: str) -> tuple[str, str]:
        """Broker and backend, for the driver itself or through one of the `LINKS`."""
        raise NotImplementedError

    def config(self, who: str = DRIVER, skew: float = 0.0) -> Config:
        """All that a process of the run must know."""
        broker, backend = self.urls(who)
        return Config(str(self.directory), broker, backend, lease=self.lease, skew=skew)

    def strike(self, what: str, which: float, size: float) -> Trouble | None:
        """Begin one of its faults; `which` and `size` are in [0, 1). None if it cannot be now."""
        raise ValueError(f"no fault is called {what!r}")

    @property
    def answers(self) -> bool:
        """Whether it is worth asking it anything now."""
        return True

    def held(self) -> bool:
        """Whether some paused process keeps all others from writing."""
        return False

    def waiting(self, app: Taskline) -> dict[str, str]:
        """The messages that are still there, by id, and what they wait for."""
        transport = app.transport
        found: dict[str, str] = {}
        if transport.capabilities.peek:
            for queue in (LOAD, GRAVE):
                found.update((each.id, each.state) for each in transport.peek(queue, 1_000_000))
            return found
        until = time.monotonic() + QUIET
        while time.monotonic() < until:
            # For a moment each time: who waits for long in one call sends no heartbeats.
            if taken := transport.receive([LOAD, GRAVE], 1000, 60.0, 1.0, "the checker"):
                found.update((each.id, "ready") for each in taken)
                until = time.monotonic() + QUIET
        return found

    def integrity(self, app: Taskline, waiting: int) -> str:
        """`ok`, or what is wrong with what is stored beside the messages that wait."""
        stats = app.transport.stats([LOAD, GRAVE])
        counted = sum(each.ready or 0 for each in stats)
        return "ok" if counted <= waiting else f"{counted} are counted, {waiting} are there"

    def moves(self) -> list[tuple[int, float]]:
        """Which process told when (Unix seconds) that it hands back what it had run for `drain`
        seconds or more, because others were to have it."""
        return []

    def excuses(self, line: str) -> bool:
        """Whether a line in the producers' log tells of nothing but our faults."""
        return line.startswith("the connection to ")


SERVER_FAULTS = {"kill server": 1, "pause server": 1}
LINK_FAULTS = {
    "cut link": 3,
    "cut answer": 3,
    "slow link": 2,
    "refuse link": 2,
    "hang link": 2,
}


class ServerStore(Store):
    """One server, and a proxy before it for each of the `LINKS`."""

    faults = {**SERVER_FAULTS, **LINK_FAULTS}
    skew = 4.0

    def __init__(self, directory: Path, *, lease: float | None = None, pace: float = 1.0) -> None:
        super().__init__(directory, lease=lease, pace=pace)
        self.links: dict[str, Proxy] = {}
        self.server = self.make_server()
        self._server_down = False
        self._broken: set[str] = set()
        # A server dies with the thread that started it.
        self._starter = ThreadPoolExecutor(1, "starter")

    def make_server(self) -> Server:
        """A server whose death loses nothing."""
        raise NotImplementedError

    def target(self, who: str) -> int:
        """The port of the server to which this link leads."""
        return self.server.port

    def open(self) -> None:
        self.links = {who: Proxy(self.target(who)) for who in LINKS}
        self.server.start()

    def close(self) -> None:
        for proxy in self.links.values():
            proxy.close()
        self.server.close()
        self._starter.shutdown()

    def port(self, who: str) -> int:
        """Where that one finds the server."""
        return self.links[who].port if who in self.links else self.server.port

    @property
    def answers(self) -> bool:
        return not self._server_down

    def strike(self, what: str, which: float, size: float) -> Trouble | None:
        if what in SERVER_FAULTS:
            if self._server_down:
                return None
            self._server_down = True
            if what == "kill server":
                return self._kill_server()
            self.server.pause()
            return Trouble("pause", self.lease * (0.25 + 1.25 * size), self._resume_server)
        link = LINKS[int(which * len(LINKS))]
        if link in self._broken:
            return None
        return self._break_link(what, link, self.links[link], size)

    def _kill_server(self) -> Trouble:
        self.server.kill()
        starting = self._starter.submit(self.server.start)

        def started() -> bool:
            self._server_down = not starting.done()
            if starting.done():
                starting.result()
            return starting.done()

        return Trouble("pause", 0.05, started)

    def _resume_server(self) -> bool:
        self.server.resume()
        self._server_down = False
        return True

    def _break_link(self, what: str, link: str, proxy: Proxy, size: float) -> Trouble:
        def mend() -> bool:
            proxy.set(PASS)
            self._broken.discard(link)
            return True

        if what == "cut link":
            (proxy.cut if size < 0.5 else proxy.reset)()
            return Trouble("link", 0.0, lambda: True, link)
        if what == "cut answer":
            proxy.cut_after(1 + int(4000 * size**2))
            # When so much has come back is not known to us; soon it has.
            return Trouble("link", 1.0, lambda: True, link)
        self._broken.add(link)
        if what == "slow link":
            proxy.set(DELAY, 0.002 + 0.02 * size)
            return Trouble("slow", self.lease * (0.5 + size), mend, link)
        if what == "refuse link":
            proxy.set(REFUSE)
            proxy.cut()
        else:
            proxy.set(HANG)
        return Trouble("link", self.lease * (0.1 + 1.3 * size), mend, link)


def query(url: str, **options: Any) -> str:
    """A URL with these options."""
    return f"{url}?{'&'.join(f'{name}={value}' for name, value in options.items())}"
