"""A producer: `python -m integration.chaos.producer CONFIG NAME SEED RATE LARGEST`.

Sends single tasks and batches, `RATE` tasks a second, until SIGTERM. Before each
send it writes down what it is about to send, after it whether that returned or
raised. For single tasks another thread waits with `get()` and writes what came.
Some batches burn a fuse: the kernel ends the process at a random moment of the send.
"""

from __future__ import annotations

import queue
import random
import signal
import sys
import threading
import time
from datetime import datetime, timezone
from typing import Any

from integration.chaos.history import History
from integration.chaos.site import die_with_parent
from integration.chaos.tasks import KEYS, KINDS, Config, make_app
from taskline import AsyncResult, ResultTimeout, Taskline, TasklineError, TransportError

BATCH_SIZES = (1, 1, 1, 2, 5, 20, 40, 60, 300)
FUSE_FROM, FUSES = 20, 0.2
"""The smallest batch that may burn a fuse, and the share of those that do."""
SINGLES, IN_A_ROW = 0.5, 4
"""The share of single sends that are of a task of which one with each key may be there at a time,
and how many of those are sent in a row. Not in batches, which learn too late whose result it is."""
CROWD, CROWDS = 40, 0.3
"""The size of batch that may be of limited and narrow tasks alone, and how often it is."""
GET_TIMEOUT = 20.0


class Producer:
    def __init__(
        self, app: Taskline, config: Config, name: str, seed: int, rate: float, largest: int
    ) -> None:
        self._app = app
        self._history = History(config.history, "producer")
        self._name = name
        self._random = random.Random(seed)
        self._rate = rate
        self._sizes = [size for size in BATCH_SIZES if size <= largest]
        self._per_task = 0.0002
        """Seconds that the last batch took for each of its tasks."""
        self._sent: queue.SimpleQueue[AsyncResult[Any] | None] = queue.SimpleQueue()
        self.stopped = threading.Event()

    def run(self) -> None:
        waiting = threading.Thread(target=self._wait_for_results, name="waiting", daemon=True)
        waiting.start()
        number = 0
        while not self.stopped.is_set():
            size = self._random.choice(self._sizes)
            started = time.monotonic()
            if size == 1 and self._random.random() < SINGLES:
                for _ in range(IN_A_ROW):
                    self._send(number, 1, "u")
                    number += 1
            else:
                crowd = size == CROWD and self._random.random() < CROWDS
                self._send(number, size, "tn" * (size // 2) if crowd else "")
                number += 1
            self.stopped.wait(max(0.0, size / self._rate - (time.monotonic() - started)))
        self._sent.put(None)
        waiting.join(timeout=GET_TIMEOUT + 1)

    def _send(self, number: int, size: int, kinds: str = "") -> None:
        base = f"{self._name}-{number}"
        weights = [kind.weight for kind in KINDS.values()]
        kinds = kinds or "".join(self._random.choices(list(KINDS), weights, k=size))
        number = self._random.randrange(KEYS if kinds == "u" else 1000)
        now = time.time()
        etas, expiries = {}, {}
        for index, letter in enumerate(kinds):
            if letter == "d":
                etas[index] = now + self._random.uniform(0.05, 3.0)
            if letter == "e":
                expiries[index] = now + self._random.uniform(0.05, 0.5)
        fuse = size >= FUSE_FROM and self._random.random() < FUSES
        self._history.write(
            "sending", base=base, kinds=kinds, etas=etas, expiries=expiries, fuse=fuse, key=number
        )
        joined = ""
        started = time.monotonic()
        if fuse:
            # SIGALRM is at its default: the kernel ends the process, as by `kill -9`.
            seconds = self._random.uniform(0, 1.1) * size * self._per_task
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.0001))
        try:
            if size == 1:
                result = self._call(base, 0, kinds, number, etas, expiries)
                joined = result.id if result.duplicate else ""
                self._sent.put(result)
            else:
                with self._app.batch():
                    for index in range(size):
                        self._call(base, index, kinds, number, etas, expiries)
        except TransportError as error:
            self._history.write("raised", base=base, error=str(error))
        else:
            self._history.write("sent", base=base, joined=joined)
            if size >= FUSE_FROM:
                self._per_task = (time.monotonic() - started) / size
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _call(
        self,
        base: str,
        index: int,
        kinds: str,
        number: int,
        etas: dict[int, float],
        expiries: dict[int, float],
    ) -> AsyncResult[Any]:
        expires = expiries.get(index)
        return self._app.tasks[KINDS[kinds[index]].task].apply_async(
            (number + index,),
            task_id=f"{base}-{index}",
            eta=etas.get(index),
            expires=expires and datetime.fromtimestamp(expires, timezone.utc),
        )

    def _wait_for_results(self) -> None:
        while (result := self._sent.get()) is not None:
            token, state, asked = None, "SUCCESS", time.monotonic()
            try:
                token = result.get(timeout=GET_TIMEOUT)
            except ResultTimeout:
                continue
            except TasklineError as error:
                state = type(error).__name__
            except ValueError:
                state = "FAILURE"
            self._history.write("got", id=result.id, state=state, token=token, asked=asked)


def main(config_text: str, name: str, seed: str, rate: str, largest: str) -> int:
    die_with_parent()
    config = Config.loads(config_text)
    app = make_app(config)
    producer = Producer(app, config, name, int(seed), float(rate), int(largest))
    signal.signal(signal.SIGTERM, lambda signum, frame: producer.stopped.set())
    producer.run()
    app.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
