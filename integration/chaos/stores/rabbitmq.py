"""A RabbitMQ for the messages; the results are in an SQLite file that nobody breaks."""

from __future__ import annotations

import subprocess

from integration.chaos.stores.base import (
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

    def make_server(self) -> RabbitMQServer:
        return RabbitMQServer()

    def urls(self, who: str) -> tuple[str, str]:
        broker = query(
            f"kombu+amqp://guest:guest@127.0.0.1:{self.port(who)}//",
            timeout=2 if who == PRODUCERS else 5,
        )
        return broker, f"sqlite:///{self.directory}/results.db"

    def strike(self, what: str, which: float, size: float) -> Trouble | None:
        if what != "fill memory":
            return super().strike(what, which, size)
        if not self.answers:
            return None
        self._allow_memory("0.000001")

        def free() -> bool:
            # A server that was killed meanwhile came back without the limit.
            if self.answers:
                self._allow_memory("0.4")
            return self.answers

        return Trouble("refuse", self.lease * (0.5 + size), free)

    def _allow_memory(self, share: str) -> None:
        subprocess.run(
            ["rabbitmqctl", "--quiet", "set_vm_memory_high_watermark", share],
            env=self.server.environment,
            check=True,
            capture_output=True,
            timeout=60,
        )


CLASS = RabbitMQStore
