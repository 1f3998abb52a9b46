"""A worker that gets hostile messages: `python -m integration.chaos.victim URL KEY`."""

from __future__ import annotations

import logging
import os
import sys

from integration.chaos.site import die_with_parent
from taskline import Taskline
from taskline.worker import Supervisor, WorkerOptions

LIMIT = 100_000
"""Bytes; the largest message that is read."""


def make_app(url: str, key: str) -> Taskline:
    """An app that reads JSON and, with a key, pickles."""
    app = Taskline(
        "victim",
        broker=url,
        backend=url,
        max_message_size=LIMIT,
        signing_key=key or None,
        accept=["json", "pickle"] if key else ["json"],
        lease=2.0,
    )

    @app.task(name="whoami")
    def whoami(number: int = 0) -> int:
        """The process that runs this."""
        return os.getpid()

    @app.task(name="fail")
    def fail() -> None:
        raise ValueError("as it was asked to")

    @app.task(name="whoami_async")
    async def whoami_async(number: int = 0) -> int:
        return os.getpid()

    return app


def main(url: str, key: str) -> int:
    die_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(process)d %(levelname)s %(message)s")
    return Supervisor(make_app(url, key), WorkerOptions(processes=1, threads=2)).run()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
