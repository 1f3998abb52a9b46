from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any
from uuid import UUID

import msgspec
import pytest
from pydantic import BaseModel

from taskline import BackendError, ConfigurationError, SerializationError, Taskline
from taskline.clock import ManualClock


class Point(msgspec.Struct):
    x: int
    y: float = 0.5


class Order(BaseModel):
    id: int
    at: datetime


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def app(taskline_memory: str, clock: ManualClock) -> Iterator[Taskline]:
    with Taskline(
        "shop", broker="memory://", backend=taskline_memory, clock=clock, max_message_size=1000
    ) as app:
        yield app


MOMENT = datetime(2024, 2, 29, 12, 30, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    "value", [None, True, 0, -7, 1.5, "", "ü\n", [], [1, "a", None], {"a": {"b": [1]}}]
)
def test_plain_values_come_back(app: Taskline, value: Any) -> None:
    assert app.kv.set("a", value)
    assert app.kv.get("a", "default") == value
    assert type(app.kv.get("a", "default")) is type(value)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (b"\0\xff", bytes),
        (MOMENT, datetime),
        (UUID(int=3), UUID),
        (Point(3), Point),
        (Order(id=3, at=MOMENT), Order),
        ({1, 2}, set[int]),
        ([Point(1), Point(2)], list[Point]),
        ({1: MOMENT}, dict[int, datetime]),
        ((1, "a"), tuple[int, str]),
        (7, int),
    ],
)
def test_values_come_back_as_their_type(app: Taskline, value: Any, kind: Any) -> None:
    app.kv.set("a", value)
    assert app.kv.get("a", type=kind) == value


def test_a_key_that_is_not_there_is_the_default(app: Taskline) -> None:
    assert app.kv.get("a") is None
    assert app.kv.get("a", 3) == 3
    assert app.kv.get("a", type=int) is None
    assert app.kv.get("a", "none", type=int) == "none"


def test_a_value_of_another_type_is_told(app: Taskline) -> None:
    app.kv.set("a", "text")
    with pytest.raises(SerializationError, match=r"the key 'a' cannot be read: Expected `int`"):
        app.kv.get("a", type=int)
    app.backend.keys().set("a", b"{", None)  # type: ignore[union-attr]
    with pytest.raises(SerializationError, match="the key 'a' cannot be read"):
        app.kv.get("a")


@pytest.mark.parametrize("value", [object(), math.nan, {"a": math.inf}, 1j, "x" * 1000])
def test_values_that_cannot_be_kept_are_refused(app: Taskline, value: Any) -> None:
    with pytest.raises(SerializationError, match="the key 'a': "):
        app.kv.set("a", value)
    assert app.kv.get("a") is None


def test_set_if_absent(app: Taskline, clock: ManualClock) -> None:
    assert app.kv.set("a", 1, ttl=10, if_absent=True)
    assert not app.kv.set("a", 2, if_absent=True)
    assert app.kv.get("a") == 1
    clock.advance(11)
    assert app.kv.set("a", 3, if_absent=True)


def test_delete_and_ttls(app: Taskline, clock: ManualClock) -> None:
    kv = app.kv
    kv.set("a", 1)
    assert kv.get_ttl("a") == math.inf
    assert kv.set_ttl("a", 10)
    assert kv.get_ttl("a") == 10
    kv.set("b", 1, ttl=10)
    assert kv.set_ttl("b", None)
    clock.advance(11)
    assert kv.get_ttl("a") is None
    assert not kv.set_ttl("a", 10)
    assert kv.get("b") == 1
    assert kv.delete("b")
    assert not kv.delete("b")


def test_a_rate_is_counted_within_its_window(app: Taskline, clock: ManualClock) -> None:
    kv = app.kv
    assert [kv.increment("mails", ttl=60) for _ in range(3)] == [1, 2, 3]
    clock.advance(59)
    assert kv.increment("mails", 7, ttl=60) == 10
    assert kv.get("mails", type=int) == 10
    clock.advance(2)
    assert kv.get("mails") is None
    assert kv.increment("mails", -1, ttl=60) == -1


def test_numbers_that_were_set_are_counted_on_and_others_are_not(app: Taskline) -> None:
    app.kv.set("a", 41)
    assert app.kv.increment("a") == 42
    app.kv.set("a", "41")
    with pytest.raises(BackendError, match="'a' holds no whole number"):
        app.kv.increment("a")


def test_all_apps_on_one_backend_see_the_same_keys(app: Taskline, clock: ManualClock) -> None:
    other = Taskline("mail", broker="memory://", backend=app.settings.backend, clock=clock)
    app.kv.set("a", 1)
    assert other.kv.get("a") == 1
    other.close()


@pytest.mark.parametrize("key", ["", None, 3, b"a", "x" * 513, "\ud800"])
def test_wrong_keys_are_refused(app: Taskline, key: Any) -> None:
    kv = app.kv
    for use in (
        lambda: kv.get(key),
        lambda: kv.set(key, 1),
        lambda: kv.delete(key),
        lambda: kv.increment(key),
        lambda: kv.get_ttl(key),
        lambda: kv.set_ttl(key, 1),
    ):
        with pytest.raises(ConfigurationError, match="key="):
            use()


def test_wrong_options_are_refused(app: Taskline) -> None:
    kv: Any = app.kv
    for use in (
        lambda: kv.set("a", 1, ttl=0),
        lambda: kv.increment("a", ttl="3"),
        lambda: kv.set_ttl("a", -1),
        lambda: kv.increment("a", 1.5),
        lambda: kv.increment("a", True),
    ):
        with pytest.raises(ConfigurationError, match=r"(ttl|by)="):
            use()
    assert kv.get("a") is None
    kv.set("a", 1)
    with pytest.raises(ConfigurationError, match="type="):
        kv.get("a", type=3)
