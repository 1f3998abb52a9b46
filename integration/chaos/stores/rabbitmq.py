"""A RabbitMQ for the messages; the results are in an SQLite file that nobody breaks."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from integration.chaos.stores.base import (
    DRIVER,
    LINK_FAULTS,
    PRODUCERS,
    SERVER_FAULTS,
    ServerStore,
    Trouble,
    query,
)
from integration.servers.rabbitmq import RabbitMQServer


class RabbitMQStore(ServerStore):
    """Kill and pause it, break its connections, let it have no memory."""

    name = "rabbitmq"
    server: RabbitMQServer
    faults = {**SERVER_FAULTS, **LINK_FAULTS, "fill memory": 1}
    batch = 1
    gap = 3.0
    lease = 6.0

    def __init__(self, directory: Path, *, lease: float | None = None, pace: float = 1.0) -> None:
        super().__init__(directory, lease=lease, pace=pace)
        self._full = False
        # rabbitmqctl takes seconds.
        self._work = ThreadPoolExecutor(1, "rabbitmqctl")

    def make_server(self) -> RabbitMQServer:
        return RabbitMQServer()

    def urls(self, who: str) -> tuple[str, str]:
        broker = query(
            f"kombu+amqp://guest:guest@127.0.0.1:{self.port(who)}//",
            timeout={PRODUCERS: 2, DRIVER: 60}.get(who, 5),
        )
        return broker, f"sqlite:///{self.directory}/results.db"

    def strike(self, what: str, which: float, size: float) -> Trouble | None:
        if what != "fill memory":
            return super().strike(what, which, size)
        if not self.answers or self._full:
            return None
        self._full = True
        self._work.submit(self._allow_memory, "0.000001")
        freeing: list[Future[None]] = []

        def free() -> bool:
            if not freeing:
                freeing.append(self._work.submit(self._allow_memory, "0.4"))
            self._full = not freeing[0].done()
            return not self._full

        return Trouble("refuse", self.lease * (0.5 + size), free)

    def _allow_memory(self, share: str) -> None:
        """Nothing to do for a server that is down: it comes back with memory."""
        own = Path("/usr/lib/rabbitmq/bin/rabbitmqctl")  # Debian's wrapper drops the environment
        subprocess.run(
            [str(own) if own.exists() else "rabbitmqctl", "set_vm_memory_high_watermark", share],
            env=self.server.environment,
            user="rabbitmq" if os.geteuid() == 0 else None,
            capture_output=True,
            timeout=60,
        )

    def excuses(self, line: str) -> bool:
        # amqp says so of a connection that the server closes while we do.
        return super().excuses(line) or line.startswith("Received method (10, 61)")

    def close(self) -> None:
        super().close()
        self._work.shutdown()


CLASS = RabbitMQStore
