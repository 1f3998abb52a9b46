"""Workers on Redis, seen and told from afar, and what that costs when nobody does."""

from __future__ import annotations

import time

from integration.everywhere import PATIENCE, Everywhere, Place
from integration.servers.redis import RedisServer
from taskline import Taskline
from taskline.worker import Worker, WorkerOptions


def test_a_worker_is_seen_asked_and_stopped_from_afar(redis_url: str) -> None:
    Everywhere().test_a_worker_is_seen_asked_and_stopped_from_afar(Place(redis_url, redis_url))


def test_an_idle_process_asks_for_a_key_a_second(redis_server: RedisServer) -> None:
    app = Taskline("idle", broker=redis_server.url, backend=redis_server.url)
    worker = Worker(app, WorkerOptions(schedule=False))
    worker.start()
    try:
        until = time.monotonic() + PATIENCE
        while not app.workers():
            assert time.monotonic() < until
        redis_server.do("CONFIG", "RESETSTAT")
        began = time.monotonic()
        time.sleep(6)
        counts = redis_server.counts()
        seconds = time.monotonic() - began
    finally:
        worker.stop(0)
        app.close()
    # A record is a SET; that the index has it is looked at each half minute.
    assert counts.get("get", 0) <= seconds / 0.9 + 3
    assert counts.get("set", 0) <= seconds / 4.5 + 1
