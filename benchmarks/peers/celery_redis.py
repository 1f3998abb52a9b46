# /// script
# dependencies = ["celery[redis]==5.7.0"]
# ///
"""Celery on Redis: see `celeries`."""

from __future__ import annotations

import redis
from celeries import OfCelery
from common import REDIS, RESULTS


class CeleryRedis(OfCelery):
    def prepare(self) -> None:
        super().prepare()
        self.client = redis.Redis.from_url(REDIS)

    def empty(self) -> bool:
        return self.client.llen("celery") == 0 and self.client.hlen("unacked") == 0


peer = CeleryRedis("celery_redis", REDIS, REDIS if RESULTS else None)
app = peer.app
