"""How the server finds what a worker asks for: by an index, without sorting or scanning.

What the driver sent is compared with the keys of the index that is meant to serve it:
equalities first, then the sort, then a range. A real server explains it as well. The
stand-in is not asked: it says SORT of what an index has sorted, and COLLSCAN of what it
answers by an index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import pytest

from integration.mongo.conftest import Running
from integration.mongo.recorder import Recorder, recorded
from integration.servers.mongo import MongoServer
from taskline.clock import SYSTEM_CLOCK
from taskline.testing.cases.transport import letter, messages
from taskline.transports.mongodb import MongoTransport, records

Check: TypeAlias = Callable[[Mapping[str, Any], str], None]

INDEXES: dict[str, list[tuple[str, int]]] = {
    "_id_": [("_id", 1)],
    **{
        index.document["name"]: list(index.document["key"].items())
        for index in (records.CLAIM, records.TIMERS, records.HOLDERS)
    },
}
STATEMENTS = {"update": "updates", "delete": "deletes"}


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with recorded() as recorder:
        yield recorder


@pytest.fixture
def transport(own_client: str, recorder: Recorder) -> Iterator[MongoTransport]:
    transport = MongoTransport.from_spec(own_client, SYSTEM_CLOCK)
    transport.send([*messages(30), *messages(30, "other"), *messages(20, priority=9)])
    transport.send(messages(5, eta=SYSTEM_CLOCK.time() + 1000))
    transport.maintain()
    recorder.clear()
    yield transport
    transport.close()


def asked(recorder: Recorder) -> list[dict[str, Any]]:
    """All that was asked of `messages`, as finds."""
    found = []
    for name, command in recorder.commands:
        if not str(command.get(name)).endswith(".messages"):
            continue
        if name == "find":
            found.append({k: command[k] for k in ("filter", "sort") if k in command})
        for statement in command.get(STATEMENTS.get(name, ""), ()):
            found.append({"filter": statement["q"]})
    return found


def plan(transport: MongoTransport, question: Mapping[str, Any]) -> Mapping[str, Any]:
    messages = transport._members[0].store.messages
    command = {"explain": {"find": messages.name, **question}, "verbosity": "queryPlanner"}
    explained: Mapping[str, Any] = messages.database.command(command)["queryPlanner"]
    return explained["winningPlan"]


def stages(plan: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(plan, Mapping):
        if "stage" in plan:
            yield plan
        for value in plan.values():
            yield from stages(value)
    elif isinstance(plan, list):
        for each in plan:
            yield from stages(each)


@pytest.fixture
def check(transport: MongoTransport, mongo_server: MongoServer | Running) -> Check:
    def check(question: Mapping[str, Any], name: str) -> None:
        assert name in served_by(question), question
        if isinstance(mongo_server, Running):
            found = list(stages(plan(transport, question)))
            assert {each["stage"] for each in found}.isdisjoint({"COLLSCAN", "SORT"}), question
            assert {each["indexName"] for each in found if "indexName" in each} == {name}, found

    return check


def served_by(question: Mapping[str, Any]) -> set[str]:
    """The indexes of which the question is a piece, in the order that is wanted."""
    found = set()
    for name, keys in INDEXES.items():
        wanted = dict(question["filter"])
        rest = list(keys)
        while rest and is_equality(wanted.get(rest[0][0], {})):
            wanted.pop(rest.pop(0)[0])
        for each in question.get("sort", {}).items():
            if not rest or rest.pop(0) != each:
                break
            wanted.pop(each[0], None)
        else:
            if rest and is_range(wanted.get(rest[0][0])):
                wanted.pop(rest[0][0])
            if len(wanted) < len(question["filter"]):
                found.add(name)
    return found


def is_equality(wanted: Any) -> bool:
    return not isinstance(wanted, Mapping) or "$in" in wanted


def is_range(wanted: Any) -> bool:
    return isinstance(wanted, Mapping) and bool({"$gt", "$gte", "$lt", "$lte"} & set(wanted))


def test_a_claim_reads_the_line_by_its_index(
    transport: MongoTransport, recorder: Recorder, check: Check
) -> None:
    taken = transport.receive(["mail", "other"], 60, 60, 0, "w")
    assert len(taken) == 60
    questions = asked(recorder)
    pieces = [each for each in questions if "q" in each["filter"]]
    assert len(pieces) == 2 + 3, "of each queue its piece, and an update for each priority"
    for each in pieces:
        check(each, "claim")
        assert set(each["filter"]) | set(each.get("sort", {})) <= {"q", "s", "p", "n"}
    won = [each for each in questions if "t" in each["filter"]]
    assert len(won) == 2
    for each in won:
        check(each, "holders")


def test_what_is_to_come_is_found_by_the_index_of_timers(
    transport: MongoTransport, recorder: Recorder, check: Check
) -> None:
    held = transport.receive(["mail"], 40, 0.05, 0, "w")
    recorder.clear()
    SYSTEM_CLOCK.sleep(0.06)
    transport.maintain()
    questions = asked(recorder)
    looks = [each for each in questions if "sort" in each]
    assert looks
    for each in looks:
        check(each, "timers")
    change = next(each for each in questions if "$expr" in each["filter"])
    assert len(change["filter"]["_id"]["$in"]) >= len(held)
    assert "_id_" in served_by(change)


def test_what_is_held_is_found_by_its_id_and_a_dead_workers_by_its_name(
    transport: MongoTransport, recorder: Recorder, check: Check
) -> None:
    taken = transport.receive(["mail"], 20, 60, 0, "w")
    recorder.clear()
    transport.extend(taken[:15], 60)
    transport.ack(taken[:5])
    transport.release(taken[5:8])
    transport.replace([(each, messages(1)[0]) for each in taken[8:10]])
    transport.bury([(each, letter(each)) for each in taken[10:12]])
    questions = asked(recorder)
    assert len(questions) >= 8
    for each in questions:
        check(each, "_id_")
    recorder.clear()
    assert transport.recover("w", []) == 8
    (question,) = asked(recorder)
    check(question, "holders")
