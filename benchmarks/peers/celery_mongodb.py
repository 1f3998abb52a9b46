# /// script
# dependencies = ["celery==5.7.0", "pymongo==4.18.3"]
# ///
"""Celery with kombu's mongodb transport: see `celeries`."""

from __future__ import annotations

from celeries import OfCelery
from common import MONGODB, RESULTS
from pymongo import MongoClient


class CeleryMongoDB(OfCelery):
    def prepare(self) -> None:
        super().prepare()
        self.client: MongoClient = MongoClient(MONGODB)

    def empty(self) -> bool:
        return self.client["bench"]["messages"].find_one({"queue": "celery"}) is None


peer = CeleryMongoDB(
    "celery_mongodb", f"{MONGODB}/bench", f"{MONGODB}/results" if RESULTS else None
)
app = peer.app
