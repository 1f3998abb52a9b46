"""Celery's messages and results: written as Celery has them, read whatever they bring."""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from taskline import Taskline, amqp, outcomes
from taskline.celery_messages import CeleryCodec
from taskline.celery_results import state_of
from taskline.codec import Codec
from taskline.config import Settings
from taskline.errors import ConfigurationError, MessageRefused, SerializationError
from taskline.failures import rebuild_error
from taskline.message import EXPIRED, FAILURE, REVOKED, STARTED, SUCCESS, Header
from taskline.queueing import Queues

SETTINGS = Settings(protocol="celery")
CODEC = CeleryCodec(SETTINGS, Queues(SETTINGS))
DAY = datetime(2026, 5, 1, 12, tzinfo=timezone.utc)


def header(**fields: Any) -> Header:
    return Header(v=1, id="id-1", task="shop.add", queue="mail", sent=5.0, **fields)


def theirs(**headers: Any) -> bytes:
    """What Celery 5 writes, with some headers changed."""
    known: dict[str, Any] = {
        "lang": "py",
        "task": "shop.add",
        "id": "id-1",
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": "id-1",
        "parent_id": None,
        "origin": "gen1@host",
        "ignore_result": False,
    }
    content_type = headers.pop("content_type", "application/json")
    body = headers.pop("body", [[1, 2], {}, {"callbacks": None, "chord": None}])
    envelope = amqp.Envelope(
        {**known, **headers}, content_type, "utf-8", {"correlation_id": "id-1", "queue": "mail"}
    )
    return amqp.wrap(envelope, json.dumps(body).encode())


def test_one_queue_of_an_app_speaks_celery() -> None:
    settings = Settings(queues={"old": {"protocol": "celery"}})
    codec = CeleryCodec(settings, Queues(settings))
    old, new = header(), header()
    old.queue = "old"
    assert codec.encode(old, [(1,), {}]).frame.startswith(amqp.MARK)
    assert codec.encode(new, [(1,), {}]).frame == Codec(settings).encode(new, [(1,), {}]).frame
    results = {
        each.queue: outcomes.outcome(codec, each, SUCCESS, 3, deliveries=1) for each in (old, new)
    }
    assert json.loads(results["old"].frame)["status"] == SUCCESS
    assert (
        results["mail"].frame
        == outcomes.outcome(Codec(settings), new, SUCCESS, 3, deliveries=1).frame
    )
    for each in results.values():
        assert state_of(each.frame) == SUCCESS
        head, body = codec.open_outcome(each.frame)
        assert codec.loads(head, body) == 3


def test_what_a_schedule_or_a_task_sends_to_celery_is_celerys() -> None:
    """They write the call first, and its header when it is sent."""
    message = CODEC.reframe(header(), b'[[1],{"b":2}]')
    envelope, body = amqp.unwrap(message.frame)
    assert (envelope.headers["task"], envelope.headers["id"]) == ("shop.add", "id-1")
    assert json.loads(body)[:2] == [[1], {"b": 2}]


def test_a_queue_may_be_tasklines_where_the_app_speaks_celery() -> None:
    settings = Settings(protocol="celery", queues={"new": {"protocol": "taskline"}})
    codec = CeleryCodec(settings, Queues(settings))
    new = header()
    new.queue = "new"
    assert not codec.encode(new, [(1,), {}]).frame.startswith(amqp.MARK)
    assert codec.encode(header(), [(1,), {}]).frame.startswith(amqp.MARK)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"backend": "celery+redis://localhost"}, "set protocol='celery'"),
        ({"queues": {"a": {"protocol": "celery", "plain": True}}}, "leave out one of the two"),
        (
            {"queues": {"a": {"protocol": "sellery"}}},
            "queues: a: protocol='sellery': choose taskline or celery",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Taskline("shop", **settings)


def test_a_call_is_written_as_celery_has_it() -> None:
    eta = DAY.timestamp()
    message = CODEC.encode(header(eta=eta, timeout=9.0, root="r", parent="p"), [(1,), {"b": DAY}])
    envelope, body = amqp.unwrap(message.frame)
    assert (envelope.content_type, envelope.content_encoding) == ("application/json", "utf-8")
    assert envelope.properties == {"correlation_id": "id-1"}
    found = envelope.headers
    assert (found["task"], found["id"], found["retries"]) == ("shop.add", "id-1", 0)
    assert (found["eta"], found["expires"]) == ("2026-05-01T12:00:00+00:00", None)
    assert (found["timelimit"], found["root_id"], found["parent_id"]) == ([9.0, None], "r", "p")
    args, kwargs, more = json.loads(body)
    assert args == [1]
    assert kwargs["b"]["__type__"] == "datetime"
    assert not any(more.values())


def test_what_was_written_is_read() -> None:
    sent = header(attempt=3, waited=7.0, errors=["a", "b"], expires=9e9, headers={"tenant": "x"})
    message = CODEC.encode(sent, [(1, DAY), {"id": UUID(int=7), "price": Decimal("1.10")}])
    envelope, body = amqp.unwrap(message.frame)
    envelope.properties["queue"] = "mail"
    opened, found = CODEC.open(amqp.wrap(envelope, body))
    assert (opened.attempt, opened.waited, opened.errors) == (3, 7.0, ["a", "b"])
    assert (opened.sent, opened.expires, opened.queue) == (5.0, 9e9, "mail")
    assert opened.headers["tenant"] == "x"
    args, kwargs = CODEC.arguments(opened, found)
    assert list(args) == [1, DAY]
    assert kwargs == {"id": UUID(int=7), "price": Decimal("1.10")}


def test_a_further_attempt_keeps_celerys_headers_and_the_body() -> None:
    opened, body = CODEC.open(theirs(group="g-1", stamps={"x": 1}))
    again = outcomes.successor(opened, ValueError("no"), 5.0, 100.0, 99.0)
    envelope, same = amqp.unwrap(CODEC.reframe(again, body).frame)
    assert same == body
    assert (envelope.headers["group"], envelope.headers["stamps"]) == ("g-1", {"x": 1})
    assert envelope.headers["retries"] == 1
    reopened, _ = CODEC.open(amqp.wrap(envelope, same))
    assert (reopened.attempt, reopened.first_run, reopened.errors) == (2, 99.0, ["ValueError: no"])


def test_tasklines_own_frames_are_read_too() -> None:
    native = Codec(Settings()).encode(header(), [(1,), {}])
    opened, body = CODEC.open(native.frame)
    assert CODEC.arguments(opened, body) == ([1], {})
    opened.attempt = 2
    assert not CODEC.reframe(opened, body).frame.startswith(amqp.MARK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": None}, "nor one of Celery's protocol 2"),
        ({"id": 7}, "nor one of Celery's protocol 2"),
        ({"compression": "application/x-gzip"}, "compressed by Celery"),
        ({"content_type": "application/x-yaml"}, "no serializer is known"),
        ({"content_type": "application/x-python-serialize"}, "'pickle' is not accepted"),
        ({"eta": "tomorrow"}, "header of Celery's message is wrong"),
        ({"retries": "many"}, "header of Celery's message is wrong"),
        ({"timelimit": ["x", None]}, "header of Celery's message is wrong"),
        ({"timelimit": [1]}, "header of Celery's message is wrong"),
        ({"root_id": 5}, "header of Celery's message is wrong"),
        ({"taskline": "{"}, "header of Celery's message is wrong"),
    ],
)
def test_what_cannot_be_read_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SerializationError, match=message):
        CODEC.open(theirs(**changes))


@pytest.mark.parametrize("asked", ["callbacks", "errbacks", "chain", "chord"])
def test_what_taskline_does_not_run_is_refused(asked: str) -> None:
    opened, body = CODEC.open(theirs(body=[[1], {}, {asked: [{"task": "next"}]}]))
    with pytest.raises(MessageRefused, match=f"asks for {asked} of Celery's"):
        CODEC.arguments(opened, body)


@pytest.mark.parametrize("body", [[[1], {}], [1, {}, {}], [[1], {}, None], "text", None])
def test_a_body_that_is_no_call(body: Any) -> None:
    opened, raw = CODEC.open(theirs(body=body))
    with pytest.raises(SerializationError, match="the body is not"):
        CODEC.arguments(opened, raw)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
known = st.sampled_from(
    ["task", "id", "eta", "expires", "retries", "timelimit", "root_id", "taskline", "compression"]
)


@settings(max_examples=50)
@given(changes=st.dictionaries(known, anything, max_size=4), body=anything)
@example(changes={"timelimit": {"": None}}, body=[])
@example(changes={"retries": math.inf}, body=[])
def test_whatever_comes_in_is_read_or_refused(changes: dict[str, Any], body: Any) -> None:
    try:
        opened, raw = CODEC.open(theirs(**changes, body=body))
        CODEC.arguments(opened, raw)
        CODEC.reframe(opened, raw)
    except SerializationError:
        pass


@given(raw=st.binary(max_size=80))
def test_bytes_that_are_nothing(raw: bytes) -> None:
    for frame in (amqp.MARK + raw, b'{"status":' + raw):
        for read in (CODEC.open, CODEC.open_outcome):
            try:
                read(frame)
            except SerializationError:
                continue
        state_of(frame)


def test_a_result_is_stored_as_celery_has_it_and_read_again() -> None:
    made = outcomes.success(
        CODEC, header(), {"day": DAY}, deliveries=2, worker="w", started=1.0, finished=2.0
    )
    meta = json.loads(made.frame)
    assert (meta["status"], meta["task_id"], meta["traceback"]) == ("SUCCESS", "id-1", None)
    assert meta["result"]["day"]["__type__"] == "datetime"
    opened, body = CODEC.open_outcome(made.frame)
    assert (opened.state, opened.deliveries, opened.worker) == (SUCCESS, 2, "w")
    assert CODEC.loads(opened, body) == {"day": DAY}


def test_a_failure_is_an_exception_at_either_end() -> None:
    made = outcomes.failure(CODEC, header(), KeyError("k"), deliveries=1)
    meta = json.loads(made.frame)
    assert meta["status"] == "FAILURE"
    assert meta["result"] == {
        "exc_type": "KeyError",
        "exc_message": ["k"],
        "exc_module": "builtins",
    }
    opened, _ = CODEC.open_outcome(made.frame)
    assert opened.error is not None
    assert repr(rebuild_error(opened.error)) == "KeyError('k')"


def test_a_task_that_expired_is_revoked_to_celery() -> None:
    made = outcomes.outcome(CODEC, header(), EXPIRED, deliveries=1)
    meta = json.loads(made.frame)
    assert (meta["status"], meta["result"]["exc_type"]) == ("REVOKED", "TaskRevokedError")
    assert CODEC.open_outcome(made.frame)[0].state == EXPIRED
    assert state_of(made.frame) == REVOKED


def test_a_result_of_celerys_worker() -> None:
    done = b'{"status": "SUCCESS", "result": [1, 2], "traceback": null, "task_id": "x"}'
    opened, body = CODEC.open_outcome(done)
    assert (opened.id, opened.state) == ("x", SUCCESS)
    assert CODEC.loads(opened, body) == [1, 2]
    failed = msgspec.json.encode(
        {
            "status": "FAILURE",
            "result": {"exc_type": "ValueError", "exc_message": ["no"], "exc_module": "builtins"},
            "traceback": "Traceback ...",
            "task_id": "x",
            "retries": 2,
        }
    )
    opened, _ = CODEC.open_outcome(failed)
    assert (opened.state, opened.attempt) == (FAILURE, 3)
    assert opened.error is not None
    error = rebuild_error(opened.error)
    assert repr(error) == "ValueError('no')"
    assert "Traceback" in str(error.__cause__)
    assert state_of(b'{"status": "RECEIVED"}') == STARTED
