"""Queues that are shared fairly: lanes, which people and workers see as one queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskline import Taskline
from taskline.clock import ManualClock
from taskline.errors import ConfigurationError, InvalidArguments
from taskline.message import VERSION, Header, new_id
from taskline.testing.stepping import Hand
from taskline.transports import memory as memory_transports
from taskline.transports.routed.lanes import Lanes
from taskline.worker import Worker, WorkerOptions

FAIR = {"mail": {"fair": "tenant"}}


@pytest.fixture(params=["memory", "sqlite", "sqlite-apart"])
def app(
    request: pytest.FixtureRequest,
    taskline_memory: str,
    tmp_path: Path,
    open_app: Callable[..., Taskline],
) -> Taskline:
    broker = taskline_memory if request.param == "memory" else f"sqlite:///{tmp_path}/broker.db"
    backend = broker if request.param != "sqlite-apart" else f"sqlite:///{tmp_path}/results.db"
    return open_app("fair", broker=broker, backend=backend, queues=FAIR)


def noting(app: Taskline, **options: Any) -> tuple[Any, list[tuple[str, int]]]:
    ran: list[tuple[str, int]] = []

    @app.task(name="note", queue="mail", **options)
    def note(tenant: str, number: int) -> None:
        ran.append((tenant, number))

    return note, ran


def send(note: Any, tenant: str, numbers: range) -> Any:
    headers = {"tenant": tenant} if tenant else {}
    return note.options(headers=headers).starmap([(tenant, number) for number in numbers])


def receive(app: Taskline, limit: int = 1) -> list[Any]:
    return app.transport.receive(["mail"], limit, 30.0, 0.0, "w")


def lane_of(tenant: str, count: int = 16) -> str:
    header = Header(VERSION, "id", "t", "mail", 1.0, headers={"tenant": tenant})
    return Lanes("mail", "tenant", count).of(header)


def others(tenant: str, number: int) -> list[str]:
    """So many tenants, each in a lane of its own, none in that of `tenant`."""
    found: dict[str, str] = {lane_of(tenant): tenant}
    for each in range(1000):
        found.setdefault(lane_of(f"t{each}"), f"t{each}")
    return list(found.values())[1 : number + 1]


def test_a_few_do_not_wait_for_the_many(app: Taskline) -> None:
    note, ran = noting(app)
    small = others("A", 3)
    send(note, "A", range(500))
    worker = Hand(app)
    while not ran:
        worker.turn()
    before = len(ran)
    for tenant in small:
        send(note, tenant, range(10))
    worker.work()
    worker.close()
    for tenant in [*small, "A"]:
        assert [number for who, number in ran if who == tenant] == list(
            range(500 if tenant == "A" else 10)
        )
    last = max(place for place, (who, _) in enumerate(ran) if who != "A")
    # At most what one fetch takes (100 ahead, and one at once) goes before them.
    assert last - before <= 101 + 30


def test_the_lanes_are_one_queue_to_people(app: Taskline) -> None:
    note, _ = noting(app)
    sent: dict[str, list[str]] = {}
    for tenant in ["", "A", *others("A", 4)]:
        sent[tenant] = [each.id for each in send(note, tenant, range(3))]
    later = note.options(countdown=600, headers={"tenant": "A"}).delay("A", 9)
    assert {each.queue for each in app.transport.stats()} == {"mail"}
    [stats] = app.transport.stats(["mail"])
    assert (stats.ready, stats.delayed, stats.leased) == (18, 1, 0)
    seen = [each.id for each in app.transport.peek("mail", 100)]
    assert sorted(seen) == sorted([*(key for keys in sent.values() for key in keys), later.id])
    assert seen[-1] == later.id
    for keys in sent.values():
        assert [key for key in seen if key in keys] == keys
    assert [each.id for each in app.transport.peek("mail", 5, 3)] == seen[3:8]
    assert {each.queue for each in app.transport.peek("mail")} == {"mail"}
    assert app.transport.delete([sent["A"][1]]) == [sent["A"][1]]
    taken = receive(app, 4)
    assert {each.queue for each in taken} == {"mail"}
    [stats] = app.transport.stats(["mail"])
    assert (stats.ready, stats.leased) == (13, 4)
    app.transport.release(taken)
    assert app.transport.purge("mail") == 18
    [stats] = app.transport.stats(["mail"])
    assert (stats.ready, stats.delayed) == (0, 0)


def test_one_after_the_other_is_asked(app: Taskline) -> None:
    note, _ = noting(app)
    tenants = ["A", *others("A", 3), ""]
    for tenant in tenants:
        send(note, tenant, range(10))
    order = []
    for _ in range(50):
        [delivery] = receive(app)
        header, _ = app.codec.open(delivery.frame)
        order.append(header.headers.get("tenant", ""))
        app.transport.ack([delivery])
    for start in range(0, 50, 5):
        assert sorted(order[start : start + 5]) == sorted(tenants)
    assert receive(app) == []


def test_retries_and_dead_letters_stay_in_the_lane(app: Taskline) -> None:
    ran: list[int] = []

    @app.task(name="fails", queue="mail", retry={"max": 1, "wait": 0})
    def fails() -> int:
        ran.append(1)
        if len(ran) < 3:
            raise ValueError("no")
        return 7

    broker = app.open_transport()._connectors[""].transport  # type: ignore[attr-defined]
    result = fails.options(headers={"tenant": "A"}).delay()
    worker = Worker(app, WorkerOptions(schedule=False))
    worker.start()
    with pytest.raises(ValueError, match="no"):
        result.get(timeout=60)
    worker.stop(5)
    assert len(ran) == 2
    assert [letter.queue for letter in app.dead.find(queue="mail")] == ["mail"]
    assert app.dead.requeue([result.id]) == [result.id]
    assert [each.ready for each in broker.stats([lane_of("A")])] == [1]
    worker = Worker(app, WorkerOptions(schedule=False))
    worker.start()
    assert app.AsyncResult(result.id).get(timeout=60) == 7
    worker.stop(5)
    broker.close()


def test_what_one_had_begun_is_stored_in_one_step_where_it_can_be(app: Taskline) -> None:
    backend = app.require_backend()
    shared = app.settings.backend == app.settings.broker and "sqlite" in str(app.settings.broker)
    assert app.transport.shares(backend) == shared


def test_pausing_and_draining_it(app: Taskline) -> None:
    note, ran = noting(app)
    for tenant in ["", "A", *others("A", 2)]:
        send(note, tenant, range(3))
    app.pause_queue("mail")
    worker = Worker(app, WorkerOptions(schedule=False, drain=True))
    worker.start()
    worker._io_thread.join(60)
    assert (worker.io.drained, worker.io.left, ran) == (True, ["mail"], [])
    worker.stop(0)
    app.resume_queue("mail")
    worker = Worker(app, WorkerOptions(schedule=False, drain=True))
    worker.start()
    worker._io_thread.join(60)
    assert worker.io.drained
    assert len(ran) == 12
    worker.stop(0)


class Tenant(Enum):
    ACME = "acme"


def header_of(app: Taskline) -> dict[str, Any]:
    [delivery] = receive(app)
    app.transport.ack([delivery])
    return app.codec.open(delivery.frame)[0].headers


def test_the_argument_that_says_whose_it_is(app: Taskline) -> None:
    @app.task(queue="mail", fair_key="tenant")
    def by_name(number: int, tenant: Tenant | str = "none", *, copy: bool = False) -> None: ...

    @app.task(queue="mail", fair_key=lambda order: order["customer"]["id"])
    def by_function(order: dict[str, Any]) -> None: ...

    by_name.delay(1, "a")
    assert header_of(app) == {"tenant": "a"}
    by_name.delay(1, tenant=Tenant.ACME, copy=True)
    assert header_of(app) == {"tenant": "acme"}
    by_name.delay(1)
    assert header_of(app) == {"tenant": "none"}
    by_name.map([1])
    assert header_of(app) == {"tenant": "none"}
    by_name.options(headers={"tenant": "b", "x": 1}).delay(1, "a")
    assert header_of(app) == {"tenant": "b", "x": 1}
    by_name.options(headers={"x": 1}, priority=3).delay(1, "a")
    assert header_of(app) == {"tenant": "a", "x": 1}
    by_function.delay({"customer": {"id": 7}})
    assert header_of(app) == {"tenant": 7}
    by_name.options(queue="plain").delay(1, "a")
    [delivery] = app.transport.receive(["plain"], 1, 30.0, 0.0, "w")
    assert app.codec.open(delivery.frame)[0].headers == {}
    by_name.si(1, "a").delay()
    assert header_of(app) == {}, "steps say it themselves"
    with pytest.raises(InvalidArguments, match="fair_key gives object"):
        by_function.delay({"customer": {"id": object()}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fair_key": "tenant"}, "fair_key='tenant': the queue default is not fair: say in"),
        ({"fair_key": "teant", "queue": "mail"}, r"fair_key='teant': .*has no such argument"),
        ({"fair_key": 7, "queue": "mail"}, "fair_key=7: must be the name of an argument, or a"),
    ],
)
def test_a_wrong_fair_key_is_refused(app: Taskline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):

        @app.task(**options)
        def task(tenant: str) -> None: ...


@settings(max_examples=50, deadline=None)
@given(
    sends=st.lists(
        st.tuples(st.sampled_from(["", "A", "B", "C", "D"]), st.integers(1, 4)), max_size=12
    ),
    limits=st.lists(st.integers(1, 6), min_size=40, max_size=40),
    lanes=st.integers(2, 5),
)
def test_each_message_comes_once_and_in_order_of_its_tenant(
    sends: list[tuple[str, int]], limits: list[int], lanes: int
) -> None:
    name = new_id()
    queues = {"mail": {"fair": "tenant", "lanes": lanes}}
    app = Taskline("fair", broker=f"memory://{name}", clock=ManualClock(), queues=queues)
    note, _ = noting(app)
    sent: list[tuple[str, str]] = []
    for tenant, count in sends:
        sent += [(tenant, each.id) for each in send(note, tenant, range(count))]
    came: list[str] = []
    for number, limit in enumerate(limits):
        taken = receive(app, limit)
        if number % 7 == 3:
            app.transport.release(taken)  # to their places
        else:
            came += [each.id for each in taken]
            app.transport.ack(taken)
    app.close()
    memory_transports.forget(name)
    assert sorted(came) == sorted(key for _, key in sent)
    for tenant in {tenant for tenant, _ in sends}:
        keys = [key for who, key in sent if who == tenant]
        assert [key for key in came if key in keys] == keys


@given(st.lists(st.sampled_from("abcd"), unique=True, min_size=1), st.integers(0, 30))
def test_the_one_that_waited_longest_is_next(busy: list[str], times: int) -> None:
    lanes = Lanes("q", "h", 4)
    names = dict(zip("abcd", lanes.names[1:], strict=True))
    served: list[str] = []
    for _ in range(times):
        first = next(name for name in lanes.turn() if name in [names[each] for each in busy])
        lanes.served([first])
        served.append(first)
    assert sorted(lanes.turn()) == sorted(lanes.names)
    for start in range(len(served) - len(busy) + 1):
        assert len(set(served[start : start + len(busy)])) == len(busy)


def test_values_are_told_apart_as_json_and_spread() -> None:
    lanes = Lanes("mail", "tenant", 16)

    def of(value: Any) -> str:
        return lanes.of(Header(VERSION, "id", "t", "mail", 1.0, headers={"tenant": value}))

    assert of({"a": 1, "b": 2}) == of({"b": 2, "a": 1})
    assert of(None) == "mail"
    counts = Counter(of(number) for number in range(1600))
    assert set(counts) == set(lanes.names[1:])
    assert max(counts.values()) < 200
    counts = Counter(of(f"tenant-{number}") for number in range(1600))
    assert max(counts.values()) < 200
    assert of("acme") == "mail-lane-12", "for ever: others send there"


@pytest.mark.parametrize(
    ("queues", "message"),
    [
        ({"mail": {"fair": ""}}, "queues: mail: fair='': name the header, such as tenant"),
        ({"mail": {"lanes": 4}}, "queues: mail: lanes=4 goes with fair"),
        ({"mail": {"fair": "t", "lanes": 1}}, "queues: mail: lanes=1: must be from 2 to 256"),
        ({"mail": {"fair": "t", "lanes": 257}}, "lanes=257: must be from 2 to 256"),
        ({"mail": {"fair": True}}, "queues: mail: Expected `str"),
        ({"mail": {"fair": "t", "plain": True}}, "plain messages have no headers"),
        ({"mail": {"fair": "t", "task": "x"}}, "plain messages have no headers"),
        ({"mail": {"fair": "t"}, "mail-lane-3": {"serializer": "json"}}, "are the same queue"),
    ],
)
def test_what_is_wrong_is_refused(queues: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Taskline("fair", broker="memory://", queues=queues)


def test_celery_knows_no_lanes() -> None:
    with pytest.raises(ConfigurationError, match="Celery's clients and workers know no lanes"):
        Taskline("fair", broker="kombu+memory://", protocol="celery", queues=FAIR)
