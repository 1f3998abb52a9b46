"""The move of docs/from-celery.md, step by step, of a shop that goes on selling meanwhile."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from integration.servers.redis import RedisServer

celery = pytest.importorskip("celery")

BOUND = 60.0
GUIDE = Path(__file__).parents[2] / "docs" / "from-celery.md"

APP = """
from celery import Celery

app = Celery("shop", broker={broker!r}, backend={results!r})
app.conf.update(task_default_queue={celery!r}, broker_connection_retry_on_startup=True)


@app.task(name="shop.tasks.other")
def other(text):
    return text.upper()
"""
ADD = """

@app.task(name="shop.tasks.add")
def add(a, b):
    return a + b
"""
ROUTED = """
app.conf.task_routes = {{"shop.tasks.add": {{"queue": {adding!r}}}}}
"""


class Shop:
    """A directory with the code of the shop, and its workers."""

    def __init__(self, directory: Path, broker: str, results: str, prefix: str) -> None:
        self.directory = directory
        self.names = {"celery": f"{prefix}celery", "adding": f"{prefix}adding"}
        self.broker, self.results = broker, results
        self.started: list[subprocess.Popen[bytes]] = []
        for module, code in {
            "shop_celery": APP + ADD,
            "shop_routed": APP + ADD + ROUTED,
            "shop_rest": APP,
        }.items():
            self.write(module, code.format(broker=broker, results=results, **self.names))

    def guides_code(self) -> str:
        """`shop_tasks.py` as the guide has it, with the servers and queues of the test."""
        found = re.search(
            r'```python title="shop_tasks.py"\n(.*?)```', GUIDE.read_text(), re.DOTALL
        )
        assert found
        code = found[1]
        for its, ours in {
            '"kombu+amqp://guest:guest@localhost//"': repr(f"kombu+{self.broker}"),
            '"celery+redis://localhost/0"': repr(f"celery+{self.results}"),
            'queue="celery"': f"queue={self.names['celery']!r}",
            'queue="adding"': f"queue={self.names['adding']!r}",
        }.items():
            assert its in code
            code = code.replace(its, ours)
        return code

    def write(self, module: str, code: str) -> None:
        (self.directory / f"{module}.py").write_text(code)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.directory / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=self.directory,
                env={**os.environ, "PYTHONPATH": ":".join([str(self.directory), *sys.path])},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def celery_worker(self, module: str, queue: str) -> subprocess.Popen[bytes]:
        return self.start(
            *("celery", "-A", module, "worker", "-c", "1", "-P", "solo"),
            *("-Q", self.names[queue], "-n", f"{module}@{queue}", "--without-gossip"),
        )

    def taskline_worker(self, module: str, *options: str) -> subprocess.Popen[bytes]:
        return self.start(
            *("taskline", "worker", "-A", module, "-Q", self.names["adding"], "-c", "1", *options)
        )

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGTERM)
        assert process.wait(BOUND) in (0, -signal.SIGTERM)  # so Celery ends

    def end(self) -> None:
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(BOUND)


@pytest.fixture(params=["rabbitmq", "redis"])
def shop(
    request: pytest.FixtureRequest,
    redis_server: RedisServer,
    own_prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Shop]:
    broker = (
        request.getfixturevalue("rabbitmq_amqp")
        if request.param == "rabbitmq"
        else f"{redis_server.url}/3"
    )
    monkeypatch.syspath_prepend(tmp_path)
    shop = Shop(tmp_path, broker, f"{redis_server.url}/4", own_prefix)
    yield shop
    shop.end()
    for module in [name for name in sys.modules if name.startswith("shop_")]:
        app = sys.modules.pop(module).app
        app.close()


Sold = list[tuple[Any, object]]
"""Results, and what each is to be."""


def adding(add: Any) -> Sold:
    return [(add.delay(number, 1), number + 1) for number in range(10)]


def sales(add: Any, other: Any, what: str) -> Sold:
    """What callers send at any time."""
    return [*adding(add), (other(what), what.upper())]


def check(sold: Sold) -> None:
    for result, right in sold:
        assert result.get(timeout=BOUND) == right
    sold.clear()


def test_one_task_moves(shop: Shop, redis_server: RedisServer) -> None:
    old = import_module("shop_celery")
    others = shop.celery_worker("shop_celery", "celery")
    sold = sales(old.add, old.other.delay, "before")
    check(sold)

    # 1. A queue of its own in Celery.
    adders = shop.celery_worker("shop_routed", "adding")
    sold += sales(old.add, old.other.delay, "unaware")
    old = import_module("shop_routed")
    sold += sales(old.add, old.other.delay, "routed")
    check(sold)

    # 2. Both kinds of workers share it.
    shop.write("shop_tasks", shop.guides_code())
    worker = shop.taskline_worker("shop_tasks")
    sold += sales(old.add, old.other.delay, "shared")
    check(sold)

    # 3. Celery's worker is stopped; what waits, and what comes, Taskline runs.
    sold += sales(old.add, old.other.delay, "stopping")
    shop.stop(adders)
    sold += sales(old.add, old.other.delay, "stopped")
    check(sold)
    with pytest.raises(Exception, match="a = 'one': Expected `int`"):  # as only Taskline says
        old.add.delay("one", 1).get(timeout=BOUND)

    # 4. The callers move: to their own task, and to those that are still Celery's.
    shop.stop(others)
    others = shop.celery_worker("shop_rest", "celery")
    new = import_module("shop_tasks")

    def other(text: object) -> Any:
        return new.app.send_task("shop.tasks.other", (text,))

    sold += sales(new.add, other, "moved")
    check(sold)
    with pytest.raises(AttributeError, match="has no attribute 'upper'"):
        other(5).get(timeout=BOUND)
    shop.stop(others)

    # 5. Nobody speaks Celery any more: the new place has workers, then callers; the old drains.
    there = repr(f"{redis_server.url}/5")
    plain = shop.guides_code().replace('protocol="celery",', "")
    for before in (f"kombu+{shop.broker}", f"celery+{shop.results}"):
        plain = plain.replace(repr(before), there)
    shop.write("shop_plain", plain)
    shop.taskline_worker("shop_plain")
    sold += adding(new.add)
    shop.stop(worker)
    sold += adding(new.add)
    sold += adding(import_module("shop_plain").add)
    assert shop.taskline_worker("shop_tasks", "--drain").wait(BOUND) == 0
    check(sold)
