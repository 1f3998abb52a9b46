"""A load, and faults of all kinds from a seed, on each store: nothing is lost, and what ran twice
has a reason.

`TASKLINE_CHAOS_SECONDS` and `TASKLINE_CHAOS_SEED` choose how long and which plan.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.chaos.checker import check
from integration.chaos.driver import Driver
from integration.chaos.evidence import Evidence
from integration.chaos.report import report
from integration.chaos.stores import store_class
from integration.chaos.stores.base import Store
from integration.servers.supply import Missing, demanded

SECONDS = {"sqlite": 30.0, "redis": 20.0, "rabbitmq": 30.0}
"""How long each is broken in every run of the tests."""
SEED = int(os.environ.get("TASKLINE_CHAOS_SEED") or random.randrange(10**6))

pytestmark = [
    pytest.mark.serial,
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes by Linux's /proc"),
]


@pytest.fixture(params=SECONDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    try:
        store = store_class(request.param)(tmp_path)
    except Missing as error:
        if demanded():
            raise
        pytest.skip(str(error))
    with store:
        yield store


def test_nothing_is_lost_whatever_is_broken(
    tmp_path: Path, store: Store, figures: Callable[[str], None]
) -> None:
    seconds = float(os.environ.get("TASKLINE_CHAOS_SECONDS") or SECONDS[store.name])
    Driver(store, SEED, seconds).run()
    evidence = Evidence.read(tmp_path)
    violations = check(evidence)
    text = report(evidence, violations, SEED)
    figures(text)
    assert not violations, text
    kills = sum(len(record.get("pids", [0])) for record in evidence.records["kill"])
    assert kills >= seconds * 2 / store.gap, "the driver did not do its work"
    assert len(evidence.outcomes) >= seconds * store.rate / 6, "the system did hardly any work"
    assert any(len(runs) > 1 for runs in evidence.runs.values()), "nothing was interrupted"
