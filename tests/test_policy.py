from __future__ import annotations

import random
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tenacity as t
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import taskline
from taskline.errors import ConfigurationError, Ignore, Reject, Retry
from taskline.policy import Exponential, RetryPolicy

START = 1_700_000_000.0


class Flaky(Exception):
    pass


class VeryFlaky(Flaky):
    pass


def decide(
    policy: Any,
    attempt: int = 1,
    error: BaseException | None = None,
    *,
    result: Any = None,
    passed: float = 0.0,
    waited: float = 0.0,
) -> float | None:
    made = RetryPolicy.of(policy)
    assert made is not None
    if error is None and result is None:
        error = ValueError("no")
    return made.decide(
        attempt=attempt,
        error=error,
        result=result,
        first_run=START,
        waited=waited,
        now=START + passed,
    )


def attempts(policy: Any, error: BaseException | None = None, each: float = 0.0) -> list[float]:
    """The waits of a task that always fails, as a worker would find them out."""
    waits: list[float] = []
    while len(waits) < 50:
        passed = sum(waits) + each * (len(waits) + 1)
        wait = decide(policy, len(waits) + 1, error, passed=passed, waited=sum(waits))
        if wait is None:
            break
        waits.append(wait)
    return waits


def traveller(policy: Any) -> RetryPolicy:
    """The policy as it arrives after a journey in a header."""
    made = RetryPolicy.of(policy)
    assert made is not None
    return RetryPolicy.from_dict(msgspec.json.decode(msgspec.json.encode(made.to_dict())))


# --- a number


def test_none_is_no_policy() -> None:
    assert RetryPolicy.of(None) is None


def test_a_number_counts_the_retries_after_the_first_attempt() -> None:
    assert len(attempts(3)) == 3
    assert len(attempts(1)) == 1
    assert attempts(0) == []


def test_waits_grow_from_a_second_to_ten_minutes() -> None:
    waits = attempts(15)
    for attempt, wait in enumerate(waits, 1):
        full = min(600.0, 2.0 ** (attempt - 1))
        assert 0.9 * full <= wait <= full
    assert waits[-1] != waits[-2]


def test_a_huge_attempt_number_is_no_overflow() -> None:
    wait = decide({"max": None}, 100_000)
    assert wait is not None
    assert 540 <= wait <= 600


def test_a_policy_is_its_own_policy() -> None:
    policy = RetryPolicy.of(3)
    assert RetryPolicy.of(policy) is policy


# --- a mapping


@pytest.mark.parametrize(
    ("policy", "waits"),
    [
        ({"max": 2, "wait": 5}, [5, 5]),
        ({"wait": 5}, [5, 5, 5]),
        ({"wait": timedelta(minutes=1), "max": 1}, [60]),
        ({"max": 4, "wait": [1, 5, 30]}, [1, 5, 30, 30]),
        ({"max": 4, "wait": {"exponential": {"jitter": 0}}}, [1, 2, 4, 8]),
        (
            {"max": 4, "wait": {"exponential": {"first": 3, "factor": 3, "max": 30, "jitter": 0}}},
            [3, 9, 27, 30],
        ),
        ({"within": 10, "wait": 4}, [4, 4]),
        ({"within": 10, "wait": 4, "max": 1}, [4]),
        ({"within": timedelta(seconds=8), "wait": 4}, [4, 4]),
        ({"max": 2, "wait": t.wait_fixed(7)}, [7, 7]),
        ({"stop": t.stop_after_attempt(3), "wait": 1}, [1, 1]),
        ({"stop": {"stop_after_attempt": {"max_attempt_number": 3}}, "wait": 1}, [1, 1]),
        ({"max": 3, "wait": lambda state: 10 * state.attempt_number}, [10, 20, 30]),
        ({}, None),
    ],
)
def test_mappings(policy: dict[str, Any], waits: list[float] | None) -> None:
    if waits is None:
        assert len(attempts(policy)) == 3
    else:
        assert attempts(policy) == waits


def test_within_counts_the_time_that_the_attempts_took() -> None:
    assert attempts({"within": 9.9, "wait": 1}, each=4) == [1]


def test_jitter_spreads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.5)
    assert attempts({"max": 2, "wait": {"exponential": {"jitter": 1}}}) == [0.5, 1.0]


def test_for_and_never() -> None:
    policy = {"max": 3, "for": [Flaky, "OSError"], "never": [VeryFlaky, "FileNotFoundError"]}
    assert decide(policy, error=Flaky()) is not None
    assert decide(policy, error=ConnectionError()) is not None
    assert decide(policy, error=VeryFlaky()) is None
    assert decide(policy, error=FileNotFoundError()) is None
    assert decide(policy, error=ValueError()) is None


def test_one_exception_needs_no_list() -> None:
    assert decide({"for": Flaky}, error=VeryFlaky()) is not None
    assert decide({"never": "builtins.ValueError"}) is None


def test_what_is_no_exception_is_not_retried_by_default() -> None:
    assert decide(3, error=KeyboardInterrupt()) is None
    assert decide(3, error=SystemExit(1)) is None
    assert decide({"for": [SystemExit]}, error=SystemExit(1)) is not None


def test_dotted_names_are_imported_where_the_policy_is_declared() -> None:
    code = (
        "import sys; from taskline.policy import RetryPolicy\n"
        "assert 'tarfile' not in sys.modules\n"
        "policy = RetryPolicy.of({'for': ['tarfile.ReadError', 'tarfile.TarFile.nothing'][:1]})\n"
        "import tarfile\n"
        "assert policy.only == (tarfile.ReadError,)\n"
        "arrived = RetryPolicy.from_dict({'for': ['wave.Error', 'ValueError']})\n"
        "assert 'wave' not in sys.modules\n"
        "ask = dict(attempt=1, first_run=0, waited=0, now=0)\n"
        "assert arrived.decide(error=OSError(), **ask) is None\n"
        "import wave\n"
        "assert arrived.decide(error=wave.Error(), **ask) is not None\n"
        "assert 'tenacity' not in sys.modules\n"
    )
    root = Path(taskline.__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_names_of_nested_classes() -> None:
    policy = RetryPolicy.of({"for": [Outer.Inner]})
    assert policy is not None
    assert policy.to_dict()["for"] == [f"{__name__}.Outer.Inner"]
    assert RetryPolicy.of(policy.to_dict()) == policy


class Outer:
    class Inner(Exception):
        pass


# --- what is raised to steer


@pytest.mark.parametrize("error", [Reject("no"), Ignore()])
@pytest.mark.parametrize("policy", [3, {"for": [Exception]}, t.retry_always, t.Retrying()])
def test_reject_and_ignore_are_final(policy: Any, error: BaseException) -> None:
    assert decide(policy, error=error) is None


def test_retry_asks_for_an_attempt_and_may_name_the_wait() -> None:
    assert decide(3, error=Retry(after=5)) == 5
    assert decide({"for": [Flaky], "never": [Exception]}, error=Retry(after=0)) == 0
    assert decide({"wait": 7}, error=Retry()) == 7
    assert decide(t.wait_fixed(8), error=Retry()) == 8


def test_retry_does_not_go_beyond_the_policy_unless_always() -> None:
    assert decide(3, 4, error=Retry(after=5)) is None
    assert decide({"within": 10}, error=Retry(after=11)) is None
    assert decide(t.stop_after_attempt(1), error=Retry(after=5)) is None
    assert decide(3, 4, error=Retry(after=5, always=True)) == 5
    assert decide({"max": 0, "wait": 2}, error=Retry(always=True)) == 2


# --- tenacity


@pytest.mark.parametrize(
    ("policy", "waits"),
    [
        ((t.stop_after_attempt(3), t.wait_fixed(2)), [2, 2]),
        ([t.wait_fixed(2), t.stop_after_attempt(3)], [2, 2]),
        ((t.stop_after_attempt(5) | t.stop_after_delay(5), t.wait_fixed(2)), [2, 2, 2]),
        ((t.stop_after_attempt(2) | t.stop_after_delay(50), t.wait_fixed(2)), [2]),
        ((t.stop_after_attempt(4) & t.stop_after_delay(10), t.wait_fixed(2)), [2] * 5),
        ((t.stop_before_delay(5), t.wait_fixed(2)), [2, 2]),
        (t.wait_fixed(2), [2, 2, 2]),
        ((t.stop_after_attempt(5), t.wait_exponential(multiplier=3, max=10)), [3, 6, 10, 10]),
        ((t.stop_after_attempt(4), t.wait_incrementing(start=1, increment=2)), [1, 3, 5]),
        (
            (
                t.stop_after_attempt(5),
                t.wait_chain(t.wait_fixed(1), t.wait_fixed(4), t.wait_fixed(9)),
            ),
            [1, 4, 9, 9],
        ),
        ((t.stop_after_attempt(3), t.wait_fixed(1) + t.wait_none() + t.wait_fixed(2)), [3, 3]),
        (t.Retrying(stop=t.stop_after_attempt(3)), [0, 0]),
        (t.Retrying(stop=t.stop_after_attempt(3), wait=t.wait_fixed(1)), [1, 1]),
        ((t.stop_never, t.wait_fixed(1)), [1] * 50),
        ((t.retry_always, t.stop_after_attempt(2), t.wait_none()), [0]),
        (t.retry_never, []),
    ],
)
def test_tenacitys_strategies(policy: Any, waits: list[float]) -> None:
    assert attempts(policy) == waits
    made = traveller(policy)
    assert attempts(made) == waits


@pytest.mark.parametrize(
    ("wait", "least", "most"),
    [
        (t.wait_exponential(multiplier=4) + t.wait_random(0, 1), 16, 17),
        (t.wait_random(3, 5), 3, 5),
        (t.wait_random_exponential(multiplier=2, max=60), 0, 8),
        (t.wait_exponential_jitter(max=60, jitter=3), 4, 7),
        (t.wait_chain(*[t.wait_fixed(1)] * 2, t.wait_random(7, 8)), 7, 8),
    ],
)
def test_tenacitys_random_waits(wait: Any, least: float, most: float) -> None:
    for policy in (wait, traveller(wait)):
        found = [decide(policy, 3) for _ in range(20)]
        assert all(least <= seconds <= most for seconds in found if seconds is not None)
        assert len(set(found)) > 1


@pytest.mark.parametrize(
    ("policy", "error", "again"),
    [
        (t.retry_if_exception_type(Flaky), VeryFlaky(), True),
        (t.retry_if_exception_type((Flaky, OSError)), OSError(), True),
        (t.retry_if_exception_type(Flaky), ValueError(), False),
        (t.retry_if_not_exception_type(Flaky), VeryFlaky(), False),
        (t.retry_if_not_exception_type(Flaky), ValueError(), True),
        (t.retry_unless_exception_type(Flaky), Flaky(), False),
        (t.retry_if_exception_type(SystemExit), SystemExit(), True),
        (t.retry_if_exception_type(Flaky) | t.retry_if_exception_type(OSError), OSError(), True),
        (t.retry_if_exception_type(Flaky) & t.retry_if_exception_type(OSError), OSError(), False),
    ],
)
def test_tenacitys_retries(policy: Any, error: BaseException, again: bool) -> None:
    assert (decide(policy, error=error) is not None) is again
    assert (decide(traveller(policy), error=error) is not None) is again


def test_causes() -> None:
    error = ValueError()
    error.__cause__ = Flaky()
    for policy in (
        RetryPolicy.of(t.retry_if_exception_cause_type(Flaky)),
        traveller(t.retry_if_exception_cause_type(Flaky)),
    ):
        assert decide(policy, error=error) is not None
        assert decide(policy, error=ValueError()) is None


def test_messages_and_predicates() -> None:
    assert decide(t.retry_if_exception_message(match="no"), error=ValueError("no")) is not None
    assert decide(t.retry_if_exception_message(match="no"), error=ValueError("yes")) is None
    assert decide(t.retry_if_exception(lambda e: e.args == ("x",)), error=Flaky("x")) is not None


def test_results_are_judged_by_a_retry_strategy_alone() -> None:
    unready = t.retry_if_result(lambda value: value == "wait")
    policy = RetryPolicy.of((unready, t.wait_fixed(3), t.stop_after_attempt(3)))
    assert policy is not None
    assert policy.judges_results
    assert decide(policy, result="wait") == 3
    assert decide(policy, 3, result="wait") is None
    assert decide(policy, result="done") is None
    assert decide(policy, error=Flaky()) is None
    both = RetryPolicy.of(unready | t.retry_if_exception_type(Flaky))
    assert decide(both, result="wait") is not None
    assert decide(both, error=Flaky()) is not None
    plain = RetryPolicy.of(3)
    assert plain is not None
    assert not plain.judges_results
    assert decide(plain, result="wait") is None
    assert decide({"for": [Exception]}, result="wait") is None


def test_never_goes_before_a_retry_strategy() -> None:
    policy = {"retry": t.retry_always, "never": [VeryFlaky]}
    assert decide(policy, error=VeryFlaky()) is None
    assert decide(policy, error=Flaky()) is not None


def test_functions_see_what_tenacity_would_show_them() -> None:
    seen: list[t.RetryCallState] = []

    def wait(state: t.RetryCallState) -> float:
        seen.append(state)
        return 4

    def stop(state: t.RetryCallState) -> bool:
        assert state.upcoming_sleep == 4
        return state.attempt_number > 5

    def retry(state: t.RetryCallState) -> bool:
        assert state.outcome is not None
        return isinstance(state.outcome.exception(), Flaky)

    policy = {"wait": wait, "stop": stop, "retry": retry}
    error = Flaky("x")
    assert decide(policy, 5, error, passed=100.0, waited=60.0) == 4
    assert decide(policy, 6, error) is None
    assert decide(policy, 1, ValueError()) is None
    state = seen[0]
    assert state.attempt_number == 5
    assert state.seconds_since_start == 100.0
    assert state.idle_for == 60.0
    assert state.outcome is not None
    assert state.outcome.failed
    assert state.outcome.exception() is error
    assert state.retry_object.stop is stop
    assert "attempt #5; slept for 60.0; last result: failed (Flaky x)" in repr(state)


@pytest.mark.parametrize(
    "policy",
    [
        {"wait": lambda state: 1 / 0},
        {"stop": lambda state: 1 / 0},
        {"retry": lambda state: 1 / 0},
        {"wait": lambda state: "soon"},
        {"wait": lambda state: -1},
        {"wait": lambda state: float("nan")},
        {"wait": lambda state: None},
    ],
)
def test_a_function_that_fails_is_a_wrong_policy(policy: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"^retry policy: "):
        decide(policy)


# --- what is wrong


class AsyncRetry(t.retry_base):
    async def __call__(self, retry_state: t.RetryCallState) -> bool:  # type: ignore[override]
        return True


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (True, "True is not a policy"),
        ("3", "'3' is not a policy"),
        (1.5, "1.5 is not a policy"),
        (-1, "max = -1"),
        (object(), "is not a number, a mapping, or"),
        (lambda state: 1, "{'wait': function}"),
        ((), "it is empty"),
        ((t.wait_fixed(1), t.wait_fixed(2)), "two of wait: combine"),
        ({"maxx": 1}, "unknown key 'maxx': did you mean 'max'?"),
        ({1: 1}, "unknown key 1"),
        ({"max": "3"}, "max = '3'"),
        ({"max": True}, "max = True"),
        ({"within": "1h"}, "within = '1h'"),
        ({"wait": -1}, "wait = -1"),
        ({"wait": True}, "wait = True"),
        ({"wait": []}, "wait = []"),
        ({"wait": [1, "x"]}, "wait = 'x'"),
        ({"wait": "soon"}, "wait = 'soon'"),
        ({"wait": float("inf")}, "wait = inf"),
        ({"wait": {"exponentially": {}}}, "wait = {'exponentially': {}}"),
        ({"wait": {"exponential": {"firstt": 1}}}, "unknown field `firstt`"),
        ({"wait": {"exponential": {"first": "1"}}}, "Expected `float`"),
        ({"wait": {"exponential": {"first": -1}}}, "numbers from 0"),
        ({"wait": {"exponential": {"jitter": 2}}}, "jitter up to 1"),
        ({"wait": t.stop_after_attempt(1)}, "this is a stop"),
        ({"stop": 3}, "stop = 3"),
        ({"stop": {"wait_fixed": {"wait": 1}}}, "no strategy of tenacity's"),
        ({"stop": {"stop_after_attempt": {"n": 1}}}, "no strategy of tenacity's"),
        ({"for": [3]}, "for: 3 is not an exception class"),
        ({"for": [int]}, "is not an exception class"),
        ({"for": ["int"]}, "there is no exception 'int'"),
        ({"for": ["no.such.Error"]}, "there is no exception 'no.such.Error'"),
        ({"never": ["os.nothing"]}, "there is no exception 'os.nothing'"),
        ({"for": [""]}, "there is no exception ''"),
        ({"for": [".."]}, "there is no exception '..'"),
        ({"retry": AsyncRetry()}, "it is async"),
    ],
)
def test_wrong_policies(policy: Any, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RetryPolicy.of(policy)
    message = str(caught.value)
    assert message.startswith("retry policy: ")
    assert says in message
    assert "\n" not in message


# --- travelling


@pytest.mark.parametrize(
    ("policy", "plain"),
    [
        (3, {"max": 3}),
        ({}, {"max": 3}),
        ({"max": None}, {"max": None}),
        ({"wait": 5, "max": 1}, {"max": 1, "wait": 5.0}),
        ({"wait": [1, 2]}, {"max": 3, "wait": [1.0, 2.0]}),
        (
            {"within": 60, "wait": Exponential(first=2)},
            {
                "max": None,
                "within": 60.0,
                "wait": {"exponential": {"first": 2.0, "factor": 2.0, "max": 600.0, "jitter": 0.1}},
            },
        ),
        (
            {"max": 1, "for": [ValueError, Flaky], "never": ["urllib.error.URLError"]},
            {
                "max": 1,
                "for": ["ValueError", f"{__name__}.Flaky"],
                "never": ["urllib.error.URLError"],
            },
        ),
        (
            t.stop_after_attempt(3) | t.stop_after_delay(60),
            {
                "max": None,
                "stop": {
                    "stop_any": [
                        {"stop_after_attempt": {"max_attempt_number": 3}},
                        {"stop_after_delay": {"max_delay": 60.0}},
                    ]
                },
            },
        ),
        (
            (t.stop_never, t.retry_always),
            {"max": None, "stop": "stop_never", "retry": "retry_always"},
        ),
        (
            t.retry_if_exception_type(OSError),
            {"max": 3, "retry": {"retry_if_exception_type": {"exception_types": ["OSError"]}}},
        ),
    ],
)
def test_the_plain_form(policy: Any, plain: dict[str, Any]) -> None:
    made = RetryPolicy.of(policy)
    assert made is not None
    assert made.to_dict() == plain
    again = traveller(policy)
    assert again.to_dict() == plain
    if made.stop is None and made.retry is None:
        assert again == made


@pytest.mark.parametrize(
    "policy",
    [
        {"wait": lambda state: 1},
        {"stop": lambda state: True},
        t.retry_if_result(lambda value: True),
        t.retry_if_exception(lambda error: True),
        t.retry_if_exception_message(match="x"),
        t.wait_fixed(1) + (lambda state: 1),  # type: ignore[operator]
        t.retry_if_exception_type(type("Local", (Exception,), {"__qualname__": "f.<locals>.L"})),
        {"for": [type("Local", (Exception,), {"__qualname__": "f.<locals>.Local"})]},
    ],
)
def test_what_has_no_name_elsewhere_does_not_travel(policy: Any) -> None:
    made = RetryPolicy.of(policy)
    assert made is not None
    with pytest.raises(ConfigurationError, match="declare it on the task"):
        made.to_dict()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("abc._", max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["exponential", "stop_any", "wait_chain", "wait_fixed", "wait", "max", "exec"]
            ),
            inner,
            max_size=2,
        )
    ),
    max_leaves=6,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(["max", "within", "wait", "for", "never", "stop", "retry", "x"]), JSON
    )
)
def test_anything_may_arrive(data: dict[str, Any]) -> None:
    try:
        policy = RetryPolicy.from_dict(data)
        wait = decide(policy, 2)
    except ConfigurationError as error:
        said = str(error)
    else:
        said = ""
        assert wait is None or wait >= 0
    assert "\n" not in said
    assert len(said) < 400


@pytest.mark.parametrize(
    "strategy",
    [
        {"os.system": {"command": "true"}},
        {"stop_base": {}},
        {"stop_when_event_set": {"event": 1}},
        {"stop_any": [{"stop_any": []}]},
        "stop_after_attempt",
        "stop_",
        "stop_any",
        {"stop_never": {}},
        {"stop_after_attempt": {"max_attempt_number": "3"}},
        {"stop_after_delay": {}, "stop_after_attempt": {}},
        {"stop_after_delay": {}},
    ],
)
def test_a_message_makes_nothing_but_the_known_strategies(strategy: Any) -> None:
    with pytest.raises(ConfigurationError):
        RetryPolicy.from_dict({"stop": strategy})


def test_deep_nesting_is_refused() -> None:
    strategy: Any = "stop_never"
    for _ in range(5000):
        strategy = {"stop_any": [strategy]}
    with pytest.raises(ConfigurationError):
        RetryPolicy.from_dict({"stop": strategy})


def test_an_unknown_class_in_a_travelled_strategy_matches_nothing() -> None:
    names = ["no.such.Error", "OSError"]
    policy = RetryPolicy.from_dict(
        {"retry": {"retry_if_exception_type": {"exception_types": names}}}
    )
    assert decide(policy, error=OSError()) is not None
    assert decide(policy, error=ValueError()) is None
