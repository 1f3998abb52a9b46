"""How long a member polls, while the I/O thread may want something of it."""

from __future__ import annotations

from taskline.transports.kafka.member import LATE, POLL, SOON, patience


def test_who_called_just_now_calls_again_soon() -> None:
    for holds in (True, False):  # a message was finished, and the next one is not handed over yet
        assert patience(0.0, holds=holds) == SOON
        assert patience(0.01, holds=holds) < 0.005


def test_who_holds_messages_will_call_and_who_does_not_may_take_long() -> None:
    assert patience(60.0, holds=True) == LATE
    assert patience(60.0, holds=False) == POLL
