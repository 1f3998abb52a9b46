"""What the log says of tasks: by events at levels, with the task in every record, no secrets."""

from __future__ import annotations

import io
import json
import logging
from typing import Annotated, Any

import pytest
from workbench import working

from taskline import Retry, Secret, Taskline, current_task
from taskline.log import Formatter

OWN = logging.getLogger("shop")


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [
        (record.levelname, record.getMessage().partition("] ")[2])
        for record in caplog.records
        if record.name == "taskline.worker" and record.getMessage().startswith("task ")
    ]


def run_all(app: Taskline, caplog: pytest.LogCaptureFixture, level: int) -> None:
    @app.task(name="good")
    def good(to: str, *, password: Annotated[str, Secret]) -> None: ...

    @app.task(name="bad", retry={"max": 1, "wait": 0})
    def bad() -> None:
        raise KeyError("k")

    with caplog.at_level(level, "taskline.worker"), working(app):
        good.delay("ann", password="hunter2").get(timeout=30)
        bad.delay().get(timeout=30, propagate=False)


def test_at_the_usual_level_only_failures_are_told(
    app: Taskline, caplog: pytest.LogCaptureFixture
) -> None:
    run_all(app, caplog, logging.INFO)
    [(first, retried), (second, failed)] = lines(caplog)
    assert (first, second) == ("WARNING", "ERROR")
    assert retried.startswith("attempt 1: KeyError: 'k'; next attempt in")
    assert failed == "failed for good: KeyError: 'k'"


def test_one_line_for_each_event(app: Taskline, caplog: pytest.LogCaptureFixture) -> None:
    run_all(app, caplog, logging.DEBUG)
    found = lines(caplog)
    assert found[0] == ("DEBUG", "started: ('ann', password='***')")
    assert found[1][1].startswith("succeeded in 0.")
    assert [text.partition(" ")[0] for _, text in found[2:]] == [
        *("started:", "attempt", "started:", "failed")
    ]
    assert "hunter2" not in caplog.text


def test_levels_can_be_chosen(make_app: Any, caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(log_levels={"succeeded": "INFO", "retried": "DEBUG", "failed": "CRITICAL"})
    run_all(app, caplog, logging.INFO)
    assert [level for level, _ in lines(caplog)] == ["INFO", "CRITICAL"]


def test_every_record_of_a_task_has_the_task(
    app: Taskline, caplog: pytest.LogCaptureFixture
) -> None:
    @app.task(name="plain", retry=1)
    def plain() -> None:
        OWN.warning("in %s", "plain")
        if current_task.attempt == 1:
            raise Retry("again", after=0)

    @app.task(name="coroutine")
    async def coroutine() -> None:
        OWN.warning("in coroutine")

    with working(app):
        first, second = plain.delay(), coroutine.delay()
        first.get(timeout=30)
        second.get(timeout=30)
    OWN.warning("outside")
    own = [record for record in caplog.records if record.name == "shop"]
    marks = {(each.task_name, each.task_id, each.task_attempt) for each in own[:-1]}  # type: ignore[attr-defined]
    assert marks == {
        ("plain", first.id, 1),
        ("plain", first.id, 2),
        ("coroutine", second.id, 1),
    }
    assert not hasattr(own[-1], "task_id")


def test_formatters_of_others_see_it(app: Taskline) -> None:
    class Json(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            known = {"message", "task_id", "task_name", "task_attempt"}
            record.message = record.getMessage()
            return json.dumps({name: getattr(record, name, None) for name in sorted(known)})

    ours, json_lines = io.StringIO(), io.StringIO()
    handlers = [logging.StreamHandler(ours), logging.StreamHandler(json_lines)]
    handlers[0].setFormatter(Formatter())
    handlers[1].setFormatter(Json())

    @app.task(name="talk")
    def talk() -> None:
        OWN.warning("hello")

    for handler in handlers:
        OWN.addHandler(handler)
    try:
        with working(app):
            result = talk.delay()
            result.get(timeout=30)
    finally:
        for handler in handlers:
            OWN.removeHandler(handler)
    assert f"WARNING  shop: [talk {result.id}] hello\n" in ours.getvalue()
    assert json.loads(json_lines.getvalue()) == {
        "message": "hello",
        "task_id": result.id,
        "task_name": "talk",
        "task_attempt": 1,
    }
