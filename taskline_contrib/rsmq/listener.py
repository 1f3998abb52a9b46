"""Hears of new messages, so that a waiting `receive` need not look again and again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from redis import Redis

log = logging.getLogger("taskline.rsmq")

PATIENCE = 1.0
"""Seconds after which the thread looks whether it is still wanted, and between reconnects."""


class Listener:
    """A thread that is subscribed to RSMQ's realtime channels and sets `heard`."""

    def __init__(
        self, client: Redis, prefix: str, names: Iterable[str], heard: threading.Event
    ) -> None:
        self.names = frozenset(names)
        self._client = client
        self._own = f"{prefix}taskline:stop:{uuid4().hex}"
        self._channels = [f"{prefix}rt:{name}" for name in self.names]
        self._heard = heard
        self._stop = threading.Event()
        self._subscribed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="taskline-rsmq", daemon=True)
        self._thread.start()

    def ready(self) -> None:
        """Return when it is subscribed; at once when it was before, late when it cannot be."""
        self._subscribed.wait(PATIENCE)

    def stop(self) -> None:
        """End the thread; returns when it has ended."""
        from redis.exceptions import RedisError

        self._stop.set()
        try:
            self._client.publish(self._own, b"")
        except (RedisError, OSError) as error:
            log.debug("the listener ends by itself: %s", error)
        self._thread.join(2 * PATIENCE)

    def _run(self) -> None:
        from redis.exceptions import RedisError

        while not self._stop.is_set():
            try:
                self._listen()
            except (RedisError, OSError) as error:
                # Until it hears again, `receive` looks at every `poll` seconds.
                log.debug("not subscribed to new messages: %s", error)
                self._stop.wait(PATIENCE)

    def _listen(self) -> None:
        waits_for = {channel.encode() for channel in [self._own, *self._channels]}
        with self._client.pubsub() as pubsub:
            pubsub.subscribe(self._own, *self._channels)
            while not self._stop.is_set():
                found = pubsub.get_message(timeout=PATIENCE)
                if found is None:
                    continue
                if found["type"] == "subscribe":
                    waits_for.discard(found["channel"])
                    if waits_for:
                        continue
                    self._subscribed.set()
                # Also after a reconnect: something may have come in between.
                self._heard.set()
