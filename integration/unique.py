"""Calls that are not to meet, on any broker and backend: of many at once one is sent."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from taskline import KeyReused, Taskline, TaskRevoked
from taskline.message import REVOKED, SUCCESS
from taskline.worker import Worker, WorkerOptions

PATIENCE = 60.0
AT_ONCE = 8


def calls_that_do_not_meet(app: Taskline) -> None:
    ran = list[str]()

    @app.task(name="once", unique="until_end", unique_by="key")
    def once(key: str, number: int = 0) -> str:
        ran.append(f"once {key}")
        return key

    @app.task(name="newest", unique="until_start", unique_by="key", on_duplicate="replace")
    def newest(key: str, number: int) -> int:
        ran.append(f"newest {number}")
        return number

    @app.task(name="later", debounce=1, unique_by="key")
    def later(key: str, number: int) -> int:
        ran.append(f"later {number}")
        return number

    @app.task(name="pay")
    def pay(order: int) -> int:
        ran.append("paid")
        return order

    with ThreadPoolExecutor(AT_ONCE) as pool:
        same = list(pool.map(once.delay, ["a"] * AT_ONCE, range(AT_ONCE)))
        paid = list(pool.map(pay.options(idempotency_key="x").delay, [1] * AT_ONCE))
    assert len({each.id for each in same}) == len({each.id for each in paid}) == 1
    assert sum(not each.duplicate for each in same) == 1
    replaced = [newest.delay("a", number) for number in range(3)]
    waiting = [later.delay("a", number) for number in range(3)]
    other = once.delay("b")
    worker = Worker(app, WorkerOptions(schedule=False))
    worker.start()
    try:
        assert [each.get(timeout=PATIENCE) for each in same] == ["a"] * AT_ONCE
        assert {each.get(timeout=PATIENCE) for each in paid} == {1}
        assert replaced[-1].get(timeout=PATIENCE) == 2
        assert waiting[-1].get(timeout=PATIENCE) == 2
        assert other.get(timeout=PATIENCE) == "b"
        for each in (*replaced[:-1], *waiting[:-1]):
            with pytest.raises(TaskRevoked, match="a later call took its place"):
                each.get(timeout=PATIENCE)
            assert each.state == REVOKED
        again = once.delay("a")
        assert not again.duplicate
        assert again.get(timeout=PATIENCE) == "a"
        once_more = pay.options(idempotency_key="x").delay(1)
        assert (once_more.duplicate, once_more.state) == (True, SUCCESS)
        with pytest.raises(KeyReused):
            pay.options(idempotency_key="x").delay(2)
    finally:
        worker.stop(5)
    assert sorted(ran) == ["later 2", "newest 2", "once a", "once a", "once b", "paid"]
