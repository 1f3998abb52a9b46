"""What MongoDB is asked to do for a task, counted by the driver's command monitoring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from integration.mongo.recorder import Recorder, recorded
from taskline import Taskline
from taskline.message import Delivery
from taskline.mongo.stream import AWAIT
from taskline.testing.cases.transport import messages
from taskline.transports.mongodb import MongoTransport
from taskline.transports.mongodb.transport import POLL_MOST
from taskline.transports.nodes import RECHECK

TASKS, BATCH = 1000, 50


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with recorded() as recorder:
        yield recorder


@pytest.fixture
def app(own_client: str, recorder: Recorder) -> Iterator[Taskline]:
    app = Taskline("costs", broker=own_client)

    @app.task(name="bench.noop")
    def noop(number: int) -> None: ...

    app.transport.ping()
    recorder.clear()
    yield app
    app.close()


def fill(app: Taskline, number: int) -> None:
    with app.batch():
        for each in range(number):
            app.tasks["bench.noop"].delay(each)


def test_a_call_is_one_command(app: Taskline, recorder: Recorder) -> None:
    for _ in range(20):
        app.tasks["bench.noop"].delay(1)
    assert Counter(recorder.names) == {"insert": 20}


def test_it_is_stored_by_a_majority_before_delay_returns(app: Taskline, recorder: Recorder) -> None:
    app.tasks["bench.noop"].delay(1)
    ((_, command),) = recorder.commands
    assert command["writeConcern"] == {"w": "majority", "j": True}


def test_a_batch_is_one_command(app: Taskline, recorder: Recorder) -> None:
    fill(app, 1000)
    assert Counter(recorder.names) == {"insert": 1}


def drained(transport: MongoTransport, number: int) -> list[Delivery]:
    done: list[Delivery] = []
    while len(done) < number:
        taken = transport.receive(["default"], BATCH, 30, 0, "w")
        assert transport.ack(taken) == []
        done += taken
    return done


def test_a_full_queue_is_drained_by_few_commands(app: Taskline, recorder: Recorder) -> None:
    """3 to claim a batch, 2 to acknowledge it, and a look at timers now and then."""
    fill(app, TASKS)
    transport = app.open_transport()
    assert isinstance(transport, MongoTransport)
    recorder.clear()
    assert len({each.id for each in drained(transport, TASKS)}) == TASKS
    asked = Counter(recorder.names)
    transport.close()
    print(f"{sum(asked.values()) / TASKS} commands a task: {asked}")
    assert sum(asked.values()) / TASKS < 0.2
    updates = [command for name, command in recorder.commands if name == "update"]
    assert len(updates) == TASKS // BATCH, "each claim leases by one update"


def test_a_claim_costs_the_same_for_one_message_and_for_many(
    app: Taskline, recorder: Recorder
) -> None:
    transport = app.open_transport()
    costs = []
    for number in (1, 10, 100):
        fill(app, number)
        transport.receive([], 1, 30, 0, "w")  # has looked at timers a moment ago
        recorder.clear()
        taken = transport.receive(["default"], 200, 30, 0, "w")
        assert len(taken) == number
        costs.append(recorder.names[-3:])
        transport.ack(taken)
    transport.close()
    assert costs == [["find", "update", "find"]] * 3


def test_many_that_come_due_at_once_are_claimed_piece_by_piece(
    app: Taskline, recorder: Recorder
) -> None:
    due = app.clock.time() + 0.1
    app.transport.send(messages(100, eta=due))
    app.clock.sleep(0.2)
    app.transport.maintain()
    recorder.clear()
    taken = app.transport.receive(["mail"], 10, 30, 0, "w")
    assert len(taken) == 10
    assert recorder.names[-3:] == ["find", "update", "find"], "nothing had to be given back"
    app.transport.purge("mail")


def test_many_empty_queues_cost_no_more_than_a_few(app: Taskline, recorder: Recorder) -> None:
    transport = app.open_transport()
    queues = [f"q{number}" for number in range(30)]
    assert transport.receive(queues, 10, 30, 0, "w") == []
    recorder.clear()
    assert transport.receive(queues, 10, 30, 0, "w") == []
    assert len(recorder.names) <= 4
    transport.close()


def test_an_idle_worker_asks_three_times_a_second(app: Taskline, recorder: Recorder) -> None:
    """Two looks, at what is ready and at timers, and one question to the change stream."""
    transport = app.open_transport()
    transport.receive(["default"], 1, 30, 0.5, "w")
    recorder.clear()
    seconds = 3.0
    transport.receive(["default"], 1, 30, seconds, "w")
    looks = seconds / RECHECK + 2
    asked = Counter(recorder.names)
    assert asked["find"] <= 2 * looks
    assert asked["getMore"] <= seconds / AWAIT + 2
    assert sum(asked.values()) <= 3 * looks + 4
    transport.close()


def test_without_change_streams_an_idle_worker_looks_twice_a_second(
    app: Taskline, recorder: Recorder
) -> None:
    """Which bounds how late it is as well: half a second."""
    transport = app.open_transport()
    assert isinstance(transport, MongoTransport)
    transport.receive(["default"], 1, 30, 0.01, "w")
    for each in transport._streams:
        each.missing, each.live = True, False
    recorder.clear()
    seconds = 3.0
    transport.receive(["default"], 1, 30, seconds, "w")
    assert recorder.names.count("find") <= 2 * (seconds / POLL_MOST + 8)
    transport.close()
