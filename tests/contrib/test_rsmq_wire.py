from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskline.message import Header, join, split
from taskline_contrib.rsmq import wire
from taskline_contrib.text import MARKER, from_text, to_text

names = st.text(st.characters(codec="utf-8"), max_size=12)


@pytest.mark.parametrize("queue", ["mail", "Mail-2_x", "x" * 160, "0"])
def test_a_name_that_rsmq_allows_is_itself(queue: str) -> None:
    assert wire.to_rsmq(queue) == queue


@pytest.mark.parametrize(
    "queue", ["mail/ü", "a:Q", "QUEUES", "mail-dead", "taskline-x-6d", " ", ""]
)
def test_other_names_become_allowed_ones(queue: str) -> None:
    name = wire.to_rsmq(queue)
    assert name != queue
    assert re.fullmatch("[a-zA-Z0-9_-]+", name)
    assert not name.endswith(wire.DEAD)
    assert wire.from_rsmq(name) == queue


@given(names, names)
def test_no_two_queues_have_one_name(one: str, two: str) -> None:
    assert wire.from_rsmq(wire.to_rsmq(one)) == one
    assert (wire.to_rsmq(one) == wire.to_rsmq(two)) == (one == two)


@pytest.mark.parametrize("name", ["taskline-x-zz", "taskline-x-f", "taskline-x-ff", "mail"])
def test_a_name_that_is_not_ours_is_what_it_says(name: str) -> None:
    assert wire.from_rsmq(name) == name


@given(st.one_of(st.binary(), st.binary().map(lambda tail: MARKER + tail)))
def test_any_frame_is_stored_as_text_and_comes_back(frame: bytes) -> None:
    assert from_text(to_text(frame).encode()) == frame


def test_text_is_stored_as_it_is() -> None:
    assert to_text('{"v":1}\n[["ü"],{}]'.encode()) == '{"v":1}\n[["ü"],{}]'


def test_what_only_looks_marked_is_what_it_is() -> None:
    for body in (b"taskline-base64:no base64!", b"taskline-base64:\xff", b"taskline-base64:abc"):
        assert from_text(body) == body


def test_a_frame_is_told_from_a_plain_message() -> None:
    frame = join(Header(v=1, id="a", task="t", queue="q", sent=0.0), b"[[],{}]")
    assert wire.is_frame(frame)
    assert wire.is_frame(b"~0a1b2c3d.00\n" + frame)
    for plain in (b"", b"hello", b"{", b"{}", b'{"id": 1}\n', b"~x", b'"' + frame, b"[" * 9999):
        assert not wire.is_frame(plain)


def test_a_plain_message_becomes_a_call() -> None:
    rid = "h5m2zk1q0a" + "X" * 22
    frame = wire.call_frame("shop.handle", "mail", rid, 'ü "x"'.encode(), as_json=False)
    assert frame is not None
    header, body = split(frame)
    assert (header.id, header.task, header.queue) == (rid, "shop.handle", "mail")
    assert header.sent == int("h5m2zk1q0a", 36) / 1e6
    assert json.loads(body) == [['ü "x"'], {}]
    frame = wire.call_frame("shop.handle", "mail", rid, b'{"a": [1]}', as_json=True)
    assert frame is not None
    assert json.loads(split(frame)[1]) == [[{"a": [1]}], {}]


def test_what_cannot_be_an_argument_is_no_call() -> None:
    assert wire.call_frame("t", "q", "x" * 32, b"\xff", as_json=False) is None
    assert wire.call_frame("t", "q", "x" * 32, b"not json", as_json=True) is None
    assert wire.call_frame("t", "q", "!" * 32, b"x", as_json=False) is not None


def test_the_end_of_an_id_is_random() -> None:
    ends = {wire.random_suffix() for _ in range(100)}
    assert len(ends) == 100
    assert all(re.fullmatch("[a-zA-Z0-9]{22}", end) for end in ends)
