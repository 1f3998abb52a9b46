"""A Kafka broker for the messages; the results are in an SQLite file that nobody breaks."""

from __future__ import annotations

import re
from datetime import datetime

from integration.chaos.stores.base import DRIVER, LINKS, PRODUCERS, ServerStore, query
from integration.servers.kafka import KafkaServer
from integration.servers.process import free_port
from integration.servers.proxy import Proxy
from taskline.kafka.location import DRAIN

MOVED = re.compile(r"^(\S+ \S+) (\d+) WARNING \d+ running tasks are handed back: their partitions")


class KafkaStore(ServerStore):
    """Kill and pause it, break its connections.

    Kafka tells its clients where it is: each proxy has a listener of its own behind it, whose
    address is the proxy's.
    """

    name = "kafka"
    batch = 1
    gap = 4.0
    lease = 6.0
    skew = 0.0
    drain = DRAIN
    server: KafkaServer

    def make_server(self) -> KafkaServer:
        self._targets = {who: free_port() for who in LINKS}
        self.links = {who: Proxy(target) for who, target in self._targets.items()}
        names = {who: who.upper() for who in LINKS}
        port, controller = free_port(), free_port()
        here = [f"PLAINTEXT://127.0.0.1:{port}"]
        return KafkaServer(
            port=port,
            controller_quorum_voters=f"1@127.0.0.1:{controller}",
            listeners=",".join(
                here
                + [f"CONTROLLER://127.0.0.1:{controller}"]
                + [f"{names[who]}://127.0.0.1:{self._targets[who]}" for who in LINKS]
            ),
            advertised_listeners=",".join(
                here + [f"{names[who]}://127.0.0.1:{self.links[who].port}" for who in LINKS]
            ),
            listener_security_protocol_map=",".join(
                f"{name}:PLAINTEXT" for name in ("CONTROLLER", "PLAINTEXT", *names.values())
            ),
        )

    def open(self) -> None:
        self.server.start()

    def urls(self, who: str) -> tuple[str, str]:
        broker = query(
            f"kafka://127.0.0.1:{self.port(who)}",
            timeout={PRODUCERS: 3, DRIVER: 60}.get(who, 10),
            partitions=4,
            **{
                "session.timeout.ms": round(self.lease * 1000),
                "reconnect.backoff.max.ms": 500,
            },
        )
        return broker, f"sqlite:///{self.directory}/results.db"

    def moves(self) -> list[tuple[int, float]]:
        told = [
            found
            for log in self.directory.glob("site-*.log")
            for line in log.read_text(errors="replace").splitlines()
            if (found := MOVED.match(line))
        ]
        form = "%Y-%m-%d %H:%M:%S,%f"
        return [(int(each[2]), datetime.strptime(each[1], form).timestamp()) for each in told]


CLASS = KafkaStore
