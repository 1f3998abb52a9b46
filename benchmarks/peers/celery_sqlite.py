# /// script
# dependencies = ["celery[sqlalchemy]==5.7.0"]
# ///
"""Celery on SQLite, through SQLAlchemy, for broker and results: see `celeries`.

Every commit is synced: there is no other choice, so it is the same in both durabilities. An idle
worker looks once a second: this transport has no setting for it.
"""

from __future__ import annotations

import sqlite3

from celeries import OfCelery
from common import DIRECTORY, RESULTS


class CelerySQLite(OfCelery):
    lacks = ()

    def prepare(self) -> None:
        """Nothing: the first send opens the file."""

    def round_trip(self, number: int) -> int:
        return self.echo.delay(number).get(interval=0.005)

    def empty(self) -> bool:
        with sqlite3.connect(DIRECTORY / "celery.db", timeout=30) as connection:
            query = "select count(*) from kombu_message where visible = 1"
            return connection.execute(query).fetchone() == (0,)


peer = CelerySQLite(
    "celery_sqlite",
    f"sqla+sqlite:///{DIRECTORY / 'celery.db'}",
    f"db+sqlite:///{DIRECTORY / 'celery-results.db'}" if RESULTS else None,
)
app = peer.app
