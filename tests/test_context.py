from __future__ import annotations

import pytest

from taskline import TasklineError, current_task
from taskline.context import Request, activate, deactivate, running
from taskline.message import Header


def request() -> Request:
    header = Header(
        v=1,
        id="a1",
        task="shop.pay",
        queue="mail",
        sent=1.0,
        priority=7,
        attempt=2,
        eta=5.0,
        expires=9.0,
        parent="p",
        root="r",
        headers={"tenant": "x"},
    )
    return Request(header, deliveries=3, receipt="receipt", deadline=20.0)


def test_outside_of_a_task_every_attribute_says_where_it_is_known() -> None:
    assert not current_task
    with pytest.raises(TasklineError, match=r"current_task\.id is only known inside a running"):
        _ = current_task.id


def test_inside_it_reads_the_message_and_the_delivery() -> None:
    token = activate(request())
    try:
        assert current_task
        assert current_task.id == "a1"
        assert current_task.name == "shop.pay"
        assert current_task.queue == "mail"
        assert current_task.priority == 7
        assert current_task.attempt == 2
        assert current_task.deliveries == 3
        assert current_task.receipt == "receipt"
        assert current_task.eta == 5.0
        assert current_task.expires == 9.0
        assert current_task.deadline == 20.0
        assert current_task.headers == {"tenant": "x"}
        assert (current_task.parent, current_task.root) == ("p", "r")
        assert current_task.cancelled is False
    finally:
        deactivate(token)
    assert running() is None


def test_a_task_within_a_task_gives_the_outer_one_back() -> None:
    outer = activate(request())
    inner = activate(Request(Header(v=1, id="b2", task="t", queue="q", sent=1.0)))
    assert current_task.id == "b2"
    deactivate(inner)
    assert current_task.id == "a1"
    deactivate(outer)


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    token = activate(request())
    try:
        with pytest.raises(AttributeError):
            _ = current_task.nonsense  # type: ignore[attr-defined]
    finally:
        deactivate(token)
