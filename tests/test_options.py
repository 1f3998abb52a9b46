from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from taskline.errors import ConfigurationError
from taskline.options import CallOptions

USUAL = CallOptions("default", 5, "json")


def test_nothing_given_changes_nothing() -> None:
    assert USUAL.changed({}) == USUAL
    assert USUAL.changed({"queue": None, "eta": None}) == USUAL
    assert USUAL.plain


def test_queue_and_priority_are_usual_all_else_is_not() -> None:
    assert USUAL.changed({"queue": "mail", "priority": 9}).plain
    assert not USUAL.changed({"countdown": 1}).plain
    assert not USUAL.changed({"headers": {"a": 1}}).plain


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"queue": ""}, "queue='': must be a string that is not empty"),
        ({"queue": 3}, "queue=3: must be a string"),
        ({"queue": "a,b"}, "queue='a,b': a queue's name has no comma and no colon"),
        ({"queue": "a:5"}, "queue='a:5'"),
        ({"queue": "a b"}, "queue='a b': must be 1 to 200 characters, no blanks"),
        ({"queue": "x" * 201}, "must be 1 to 200 characters"),
        ({"priority": 10}, "priority=10: must be a whole number from 0"),
        ({"priority": -1}, "priority=-1"),
        ({"priority": True}, "priority=True"),
        ({"priority": 5.0}, "priority=5.0"),
        ({"countdown": -1}, "countdown=-1: must be 0 or more seconds"),
        ({"countdown": "5"}, "countdown='5': must be a number of seconds"),
        ({"countdown": float("nan")}, "countdown=nan"),
        ({"countdown": True}, "countdown=True"),
        ({"eta": "tomorrow"}, "eta='tomorrow': must be a datetime or Unix seconds"),
        ({"eta": float("inf")}, "eta=inf"),
        ({"expires": 0}, "expires=0: must be more than 0 seconds"),
        ({"timeout": 0}, "timeout=0: must be more than 0 seconds"),
        ({"soft_timeout": -2}, "soft_timeout=-2"),
        ({"result_ttl": -1}, "result_ttl=-1: must be 0 or more seconds"),
        ({"serializer": ""}, "serializer=''"),
        ({"headers": [1]}, r"headers=\[1\]: must map names to JSON values"),
        ({"headers": {1: 2}}, "headers={1: 2}"),
        ({"task_id": ""}, "task_id=''"),
        ({"task_id": "a b"}, "task_id='a b'"),
        ({"countdwn": 3}, "unknown option 'countdwn': did you mean 'countdown'"),
        ({"countdown": 3, "eta": 5.0}, "countdown and eta are both given"),
        ({"countdown": 9, "expires": 9}, "expires is not after eta or countdown"),
        ({"timeout": 5, "soft_timeout": 5}, "soft_timeout=5.0: must be less than timeout=5.0"),
    ],
)
def test_a_wrong_option_is_refused_by_name_value_and_remedy(
    given: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told) as refused:
        USUAL.changed(given)
    assert "\n" not in str(refused.value)


def test_times_are_unix_seconds_whatever_they_were() -> None:
    aware = datetime(2030, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    assert USUAL.changed({"eta": aware}).eta == 1893492000.0
    assert USUAL.changed({"eta": 7}).eta == 7.0
    local = datetime(2030, 1, 1, 12)
    assert USUAL.changed({"eta": local}).eta == local.astimezone().timestamp()
    assert USUAL.changed({"expires": aware}).expires_at == 1893492000.0
    assert USUAL.changed({"expires": 30}).expires == 30.0


def test_the_later_of_two_ways_to_say_it_holds() -> None:
    assert USUAL.changed({"countdown": 5}).changed({"eta": 9.0}).countdown is None
    assert USUAL.changed({"eta": 9.0}).changed({"countdown": 5}).eta is None
    aware = datetime(2030, 1, 1, tzinfo=timezone.utc)
    assert USUAL.changed({"expires": 5}).changed({"expires": aware}).expires is None
    assert USUAL.changed({"expires": aware}).changed({"expires": 5}).expires_at is None
