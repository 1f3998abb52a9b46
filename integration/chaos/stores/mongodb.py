"""A server that speaks MongoDB's protocol, for messages and results."""

from __future__ import annotations

from integration.chaos.stores.base import PRODUCERS, ServerStore, query
from integration.servers.mongo import MongoServer
from taskline import Taskline


class MongoStore(ServerStore):
    """Kill and pause it, break its connections. It is a stand-in, and slow: a small load."""

    name = "mongodb"
    batch = 1
    rate = 10.0
    largest = 40
    gap = 3.0
    lease = 6.0

    def make_server(self) -> MongoServer:
        return MongoServer(durable=True)

    def urls(self, who: str) -> tuple[str, str]:
        url = query(
            f"mongodb://127.0.0.1:{self.port(who)}/",
            directConnection="true",
            timeout=1 if who == PRODUCERS else 3,
            serverMonitoringMode="poll",
            heartbeatFrequencyMS=500,
        )
        return url, url

    def integrity(self, app: Taskline, waiting: int) -> str:
        import pymongo

        with pymongo.MongoClient(f"mongodb://127.0.0.1:{self.server.port}/") as client:
            stored = client["taskline"]["taskline.messages"].count_documents({})
        return "ok" if stored == waiting else f"{stored} are stored, {waiting} are in line"


CLASS = MongoStore
