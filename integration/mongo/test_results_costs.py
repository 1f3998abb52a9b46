"""What MongoDB is asked to do for results, and what it stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pymongo
import pytest

from integration.mongo.recorder import Recorder, recorded
from taskline import Taskline
from taskline.backends.mongodb import MongoBackend
from taskline.clock import SYSTEM_CLOCK, Clock, ManualClock
from taskline.errors import BackendError, TransportError
from taskline.message import STARTED
from taskline.mongo.location import locate
from taskline.mongo.outcomes import LARGEST
from taskline.testing.cases.backend import outcome
from taskline.testing.cases.base import Running
from taskline.worker import Worker, WorkerOptions

BOUND = 30.0
LONG = 600.0


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with recorded() as recorder:
        yield recorder


@pytest.fixture
def backend(mongo_url: str, recorder: Recorder) -> Iterator[MongoBackend]:
    backend = MongoBackend.from_spec(mongo_url, SYSTEM_CLOCK)
    backend.ping()
    recorder.clear()
    yield backend
    backend.close()


def test_a_batch_is_stored_by_one_command(backend: MongoBackend, recorder: Recorder) -> None:
    for size in (1, 50, 500):
        recorder.clear()
        batch = [outcome(f"{size}-{number}", ttl=LONG) for number in range(size)]
        assert backend.store(batch) == []
        ((name, command),) = recorder.commands
        assert name == "update"
        assert command["writeConcern"] == {"w": "majority", "j": True}
    recorder.clear()
    assert backend.store(batch) == []
    assert recorder.names == ["update"], "what is stored again is stored by one command too"


def app_on(mongo_url: str) -> Taskline:
    app = Taskline("costs", broker=mongo_url, backend=mongo_url)
    app.task(name="bench.noop")(lambda number: number)
    return app


def test_a_full_queue_is_drained_with_results_by_few_commands(
    mongo_url: str, recorder: Recorder
) -> None:
    """3 to claim a batch, 1 to store its outcomes, 2 to acknowledge it."""
    size, number = 50, 500
    with app_on(mongo_url) as app:
        app.tasks["bench.noop"].map(range(number))
        backend = app.require_backend()
        backend.ping()
        recorder.clear()
        done = 0
        while done < number:
            taken = app.transport.receive(["default"], size, 30, 0, "w")
            outcomes = [outcome(each.id, deliveries=each.deliveries, ttl=LONG) for each in taken]
            assert backend.store(outcomes) == []
            assert app.transport.ack(taken) == []
            done += len(taken)
        asked = Counter(recorder.names)
    print(f"{sum(asked.values()) / number} commands a task: {asked}")
    assert sum(asked.values()) / number < 0.3


def test_a_worker_drains_a_full_queue_with_results_by_few_commands(
    mongo_url: str, recorder: Recorder
) -> None:
    number = 500
    with app_on(mongo_url) as app:
        results = app.tasks["bench.noop"].map(range(number))
        recorder.clear()
        worker = Worker(app, WorkerOptions(threads=2))
        worker.start()
        try:
            while (app.transport.stats(["default"])[0].ready or 0) > 0:
                SYSTEM_CLOCK.sleep(0.5)
        finally:
            worker.stop()
        asked = Counter(recorder.names)
        assert results.get(timeout=BOUND) == list(range(number))
    print(f"{sum(asked.values()) / number} commands a task: {asked}")
    assert sum(asked.values()) / number < 0.3


def test_a_refusal_costs_one_more_look(backend: MongoBackend, recorder: Recorder) -> None:
    backend.store([outcome("a"), outcome("b")])
    recorder.clear()
    refused = backend.store([outcome("a", STARTED), outcome("b"), outcome("c")])
    assert [each.id for each in refused] == ["a"]
    assert recorder.names == ["update", "aggregate"]


def test_many_are_fetched_by_one_command(backend: MongoBackend, recorder: Recorder) -> None:
    backend.store([outcome(f"{number}") for number in range(200)])
    recorder.clear()
    assert len(backend.fetch([f"{number}" for number in range(200)])) == 200
    assert recorder.names == ["aggregate"]
    ((_, command),) = recorder.commands
    assert command["readConcern"] == {"level": "majority"}


def test_who_waits_asks_once_for_what_arrives(backend: MongoBackend, recorder: Recorder) -> None:
    """While the stream is open, a wait costs a look at its beginning and one at its end."""
    backend.store([outcome("first")])
    waiting = Running(lambda: backend.wait(["a"], LONG), BOUND)
    while not all(stream.live for stream in backend._streams):
        SYSTEM_CLOCK.sleep(0.005)
    backend.store([outcome("a")])
    waiting.result()
    recorder.clear()
    for number in range(10):
        waiting = Running(lambda number=number: backend.wait([f"{number}"], LONG), BOUND)
        while Counter(recorder.names)["aggregate"] <= 2 * number:
            SYSTEM_CLOCK.sleep(0.005)
        backend.store([outcome(f"{number}")])
        assert list(waiting.result()) == [f"{number}"]
    asked = Counter(recorder.names)
    assert asked["update"] == 10
    assert asked["aggregate"] <= 20


def test_who_waits_in_vain_asks_rarely(
    backend: MongoBackend, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backend.wait(["a"], 1.0) == {}
    recorder.clear()
    assert backend.wait(["a"], 2.0) == {}
    asked = Counter(recorder.names)
    assert asked["aggregate"] <= 2
    assert asked["getMore"] <= 5


def test_without_change_streams_who_waits_asks_four_times_a_second(
    backend: MongoBackend, recorder: Recorder
) -> None:
    for stream in backend._streams:
        stream.missing = True
    assert backend.wait(["a"], 2.0) == {}
    recorder.clear()
    assert backend.wait(["a"], 2.0) == {}
    assert Counter(recorder.names)["aggregate"] <= 2.0 / 0.25 + 4


def test_many_members_of_a_set_are_one_command(backend: MongoBackend, recorder: Recorder) -> None:
    backend.count("group", "a", LONG)
    recorder.clear()
    assert backend.count_all({"group": [str(each) for each in range(500)]}, LONG) == {"group": 501}
    assert recorder.names == ["findAndModify"]


def test_a_count_and_a_number_are_one_command(backend: MongoBackend, recorder: Recorder) -> None:
    keys = backend.keys()
    backend.count("group", "a", LONG)
    keys.increment("hits", 1, LONG)
    keys.acquire("lock", "me", LONG)
    recorder.clear()
    backend.count("group", "b", LONG)
    keys.increment("hits", 1, LONG)
    keys.set("key", b"1", LONG)
    keys.get("key")
    keys.renew("lock", "me", LONG)
    keys.release("lock", "me")
    keys.acquire("lock", "you", LONG)
    assert recorder.names == [
        "findAndModify", "findAndModify", "findAndModify", "find", "update", "update",
        "findAndModify",
    ]  # fmt: skip


def test_the_server_deletes_what_has_ended(backend: MongoBackend, mongo_url: str) -> None:
    (location,) = locate(mongo_url)
    with pymongo.MongoClient[dict[str, Any]](location.url) as client:
        database = client[location.database]
        for name, field in {
            "outcomes": "end", "revocations": "end", "counts": "end", "keys": "end", "locks": "gone"
        }.items():  # fmt: skip
            indexes = database[f"{location.namespace}.{name}"].index_information()
            assert indexes[field]["key"] == [(field, 1)], name
            assert indexes[field]["expireAfterSeconds"] == 0, name
        backend.store([outcome("kept"), outcome("ends", ttl=LONG)])
        found = {each["_id"]: each for each in database[f"{location.namespace}.outcomes"].find()}
    assert found["kept"]["end"] is None
    assert found["ends"]["end"] is not None


def test_an_outcome_that_no_document_holds_is_refused_before_it_is_sent(
    backend: MongoBackend, recorder: Recorder
) -> None:
    with pytest.raises(BackendError, match=r"16\d+ bytes.*GridFS or other storage") as caught:
        backend.store([outcome("a"), outcome("large", frame=bytes(LARGEST + 1))])
    assert not caught.value.retryable
    assert recorder.names == ["update"], "the others are stored"
    assert list(backend.fetch(["a", "large"])) == ["a"]


def test_the_largest_outcome_is_stored(backend: MongoBackend) -> None:
    largest = outcome("largest", frame=bytes(LARGEST), ttl=LONG)
    backend.store([largest])
    assert backend.fetch(["largest"]) == {"largest": largest}


def test_a_large_key_is_refused(backend: MongoBackend) -> None:
    with pytest.raises(BackendError, match="GridFS or other storage") as caught:
        backend.keys().set("large", bytes(16 * 1024 * 1024), LONG)
    assert not caught.value.retryable


@pytest.mark.parametrize("clock", [SYSTEM_CLOCK, ManualClock()], ids=["server's", "tests'"])
def test_a_store_of_a_later_release_is_refused(mongo_url: str, clock: Clock) -> None:
    first = MongoBackend.from_spec(mongo_url, clock)
    first.ping()
    first.close()
    (location,) = locate(mongo_url)
    with pymongo.MongoClient[dict[str, Any]](location.url) as client:
        meta = client[location.database][f"{location.namespace}.meta"]
        meta.update_one({"_id": "results"}, {"$set": {"version": 99}})
    later = MongoBackend.from_spec(mongo_url, clock)
    with pytest.raises(TransportError, match=r"results are of layout 99.*upgrade Taskline"):
        later.ping()
    later.close()
