"""Tests of an app, with the fixtures of Taskline's pytest plug-in: `pytest test_shop.py`."""

from collections.abc import Iterator

import pytest

from taskline import Taskline
from taskline.worker import Worker, WorkerOptions


def make_app(url: str, **settings: object) -> Taskline:
    app = Taskline("shop", broker=url, backend=url, **settings)

    @app.task(name="receipt", retry=2)
    def receipt(order: int) -> str:
        if order < 0:
            raise ValueError(f"no order {order}")
        return f"receipt {order}"

    return app


@pytest.fixture
def app(taskline_memory: str) -> Iterator[Taskline]:
    with make_app(taskline_memory) as app:
        worker = Worker(app, WorkerOptions())
        worker.start()
        yield app
        worker.stop()


def test_the_function_alone(taskline_memory: str) -> None:
    receipt = make_app(taskline_memory).tasks["receipt"]
    assert receipt(1) == "receipt 1"


def test_eagerly(taskline_memory: str) -> None:
    receipt = make_app(taskline_memory, eager=True).tasks["receipt"]
    assert receipt.delay(1).get() == "receipt 1"
    failed = receipt.delay(-1)
    assert failed.info["attempt"] == 3


def test_with_a_worker(app: Taskline) -> None:
    assert app.tasks["receipt"].map([1, 2]).get(timeout=10) == ["receipt 1", "receipt 2"]
