from __future__ import annotations

from typing import Any

import pytest

from taskline.codec import Codec
from taskline.config import Settings
from taskline.errors import ConfigurationError, Ignore, Reject, Retry
from taskline.message import Header, Outcome, OutcomeHeader, split_outcome
from taskline.outcomes import (
    failure,
    next_attempt,
    outcome,
    retrying,
    success,
    successor,
    unsatisfying,
)
from taskline.policy import RetryPolicy

CODEC = Codec(Settings())
KNOWN: dict[str, Any] = {
    "deliveries": 3,
    "worker": "w",
    "started": 5.0,
    "finished": 6.0,
    "ttl": 60.0,
}


def header(**changes: Any) -> Header:
    return Header(v=1, id="a", task="pay", queue="q", sent=1.0, **changes)


def opened(outcome: Outcome) -> OutcomeHeader:
    return split_outcome(outcome.frame)[0]


def test_success_tells_the_run_and_the_value() -> None:
    made = success(CODEC, header(attempt=2, parent="p", root="r", errors=["E: x"]), [1], **KNOWN)
    assert (made.id, made.state, made.fence, made.ttl) == ("a", "SUCCESS", (1.0, 3), 60.0)
    head, body = CODEC.open_outcome(made.frame)
    assert CODEC.loads(head, body) == [1]
    assert (head.task, head.queue, head.worker) == ("pay", "q", "w")
    assert (head.attempt, head.deliveries, head.started, head.finished) == (2, 3, 5.0, 6.0)
    assert (head.parent, head.root, head.errors, head.error) == ("p", "r", ["E: x"], None)


def test_the_result_is_written_as_the_message_was() -> None:
    made = success(CODEC, header(serializer="msgpack"), b"raw", **KNOWN)
    assert opened(made).serializer == "msgpack"
    head, body = CODEC.open_outcome(made.frame)
    assert CODEC.loads(head, body) == b"raw"


def test_a_value_that_does_not_fit_is_a_failure_that_says_what_to_do() -> None:
    made = success(CODEC, header(), object(), **KNOWN)
    assert made.state == "FAILURE"
    error = opened(made).error
    assert error is not None
    assert error["type"] == "taskline.errors.SerializationError"
    for part in ("pay", "builtins.object", "json", "serializer="):
        assert part in error["message"]


def test_a_value_too_large_is_a_failure() -> None:
    made = success(Codec(Settings(max_message_size=4000)), header(), "x" * 5000, **KNOWN)
    assert made.state == "FAILURE"
    assert "larger than max_message_size = 4000" in (opened(made).error or {})["message"]


def test_an_error_too_large_for_the_limit_still_makes_a_failure() -> None:
    codec = Codec(Settings(max_message_size=4000))
    made = failure(codec, header(), ValueError("x" * 10_000), **KNOWN)
    assert made.state == "FAILURE"
    assert (opened(made).error or {})["type"] == "builtins.ValueError"


def test_failure_and_retry_keep_the_last_ten_lines() -> None:
    before = header(errors=[f"E: {n}" for n in range(10)], attempt=11)
    made = failure(CODEC, before, ValueError("now"), **KNOWN)
    assert opened(made).errors == [*before.errors[1:], "ValueError: now"]
    tried = retrying(CODEC, before, ValueError("now"), retry_at=9.0, **KNOWN)
    assert (tried.state, opened(tried).retry_at) == ("RETRY", 9.0)
    assert opened(tried).errors == opened(made).errors
    assert before.errors[0] == "E: 0"


def test_a_rejection_is_told_as_such() -> None:
    error = opened(failure(CODEC, header(), Reject("void"), **KNOWN)).error
    assert error is not None
    assert (error["type"], error["message"]) == ("taskline.errors.TaskRejected", "void")


def test_states_without_a_value() -> None:
    for state in ("STARTED", "REVOKED", "EXPIRED"):
        made = outcome(CODEC, header(), state, **KNOWN)
        assert (made.state, opened(made).state) == (state, state)


def test_the_successor_counts_on() -> None:
    first = header(eta=1.0, expires=50.0, headers={"a": 1})
    second = successor(first, OSError("x"), 4.0, now=10.0, started=9.0)
    assert (second.attempt, second.eta, second.first_run, second.waited) == (2, 14.0, 9.0, 4.0)
    assert (second.expires, second.headers, second.errors) == (50.0, {"a": 1}, ["OSError: x"])
    third = successor(second, OSError("y"), 6.0, now=20.0, started=19.0)
    assert (third.attempt, third.first_run, third.waited) == (3, 9.0, 10.0)
    assert third.errors == ["OSError: x", "OSError: y"]
    assert (first.attempt, list(first.errors)) == (1, [])


FIVE = RetryPolicy.of({"max": 2, "wait": 5, "never": [KeyError]})


@pytest.mark.parametrize(
    ("policy", "head", "error", "expected"),
    [
        (None, header(), OSError(), None),
        (FIVE, header(), OSError(), 5.0),
        (FIVE, header(attempt=3), OSError(), None),
        (FIVE, header(), KeyError(), None),
        (FIVE, header(), SystemExit(), None),
        (FIVE, header(), Reject(), None),
        (FIVE, header(), Ignore(), None),
        (FIVE, header(), None, None),
        (FIVE, header(retry={"max": 1, "wait": 7}), OSError(), 7.0),
        (FIVE, header(retry={"max": 0}), OSError(), None),
        (None, header(retry={"max": 1, "wait": 7}), OSError(), 7.0),
        (FIVE, header(), Retry(), 5.0),
        (FIVE, header(), Retry(after=3), 3),
        (FIVE, header(attempt=3), Retry(after=3), None),
        (FIVE, header(attempt=3), Retry(after=3, always=True), 3),
        (None, header(), Retry(after=3), 3),
        (None, header(attempt=3), Retry(after=3), 3),
        (None, header(attempt=4), Retry(after=3), None),
    ],
)
def test_whether_and_when_it_is_tried_again(
    policy: RetryPolicy | None, head: Header, error: BaseException | None, expected: float | None
) -> None:
    assert next_attempt(policy, head, error, 100.0) == expected


def test_the_time_since_the_first_attempt_counts() -> None:
    policy = RetryPolicy.of({"within": 60, "wait": 5})
    assert next_attempt(policy, header(), OSError(), 100.0, started=90.0) == 5.0
    assert next_attempt(policy, header(), OSError(), 100.0, started=10.0) is None
    assert next_attempt(policy, header(first_run=10.0), OSError(), 100.0, started=99.0) is None


def test_a_wrong_policy_in_a_message_is_told() -> None:
    with pytest.raises(ConfigurationError, match="nonsense"):
        next_attempt(None, header(retry={"nonsense": 1}), OSError(), 1.0)


def test_a_result_may_be_tried_again() -> None:
    import tenacity

    policy = RetryPolicy.of(tenacity.retry_if_result(lambda value: value is None))
    assert next_attempt(policy, header(), None, 1.0, result=None) is not None
    assert next_attempt(policy, header(), None, 1.0, result=3) is None
    assert "does not accept the result None" in str(unsatisfying(None))
