"""A Redis with an append-only file, for messages and results."""

from __future__ import annotations

from integration.chaos.stores.base import (
    LINK_FAULTS,
    PRODUCERS,
    SERVER_FAULTS,
    ServerStore,
    Trouble,
    query,
)
from integration.servers.redis import RedisServer
from taskline import Taskline
from taskline.transports.redis.store import SEND_BATCH


class RedisStore(ServerStore):
    """Kill and pause it, break its connections, let it have no memory."""

    name = "redis"
    server: RedisServer
    faults = {**SERVER_FAULTS, **LINK_FAULTS, "fill memory": 2}
    batch = SEND_BATCH
    together = True

    def make_server(self) -> RedisServer:
        return RedisServer(appendonly=True)

    def urls(self, who: str) -> tuple[str, str]:
        patience = 1.0 if who == PRODUCERS else 5.0
        url = query(f"redis://127.0.0.1:{self.port(who)}", timeout=patience)
        return url, url

    def strike(self, what: str, which: float, size: float) -> Trouble | None:
        if what != "fill memory":
            return super().strike(what, which, size)
        if not self.answers:
            return None
        self.server.do("CONFIG", "SET", "maxmemory", "1")

        def free() -> bool:
            # A server that was killed meanwhile came back without the limit.
            if self.answers:
                self.server.do("CONFIG", "SET", "maxmemory", "0")
            return self.answers

        return Trouble("refuse", self.lease * (0.1 + size), free)

    def integrity(self, app: Taskline, waiting: int) -> str:
        stored, begun = (
            int(self.server.do("HLEN", f"{{taskline}}{name}").strip(":\r\n")) for name in "mh"
        )
        if stored == waiting and begun <= stored:
            return "ok"
        return f"{stored} messages are stored, of {begun} a history; {waiting} are in line"


CLASS = RedisStore
