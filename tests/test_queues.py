"""Queues by configuration: aliases, connectors, profiles, serializers, models, dead letters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from taskline import Retry, Taskline, current_task, emit
from taskline.errors import ConfigurationError, InvalidArguments, TransportError
from taskline.message import DeadLetter, split
from taskline.transports import open_transport
from taskline.worker import Worker, WorkerOptions


@dataclass
class Event:
    user: str
    count: int = 1


def refused(**settings: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Taskline("etl", broker="memory://home", **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def buried(app: Taskline, number: int = 1, **which: Any) -> list[DeadLetter]:
    """So many dead letters, which come a moment after the outcome."""
    by = app.clock.monotonic() + 20
    while len(found := list(app.dead.find(**which))) < number:
        assert app.clock.monotonic() < by, f"{len(found)} dead letters, not {number}"
        app.clock.sleep(0.01)
    return found


# Configuration


def test_a_queue_names_its_broker_in_three_ways() -> None:
    app = Taskline(
        "etl",
        broker="memory://home",
        connectors={"bus": "memory://bus"},
        queues={
            "named": {"broker": "bus"},
            "url": {"broker": "memory://url", "name": "prod.url"},
            "mapping": {"broker": {"type": "memory", "name": "mapped"}},
            "same": {"broker": "memory://url"},
            "here": {"name": "elsewhere"},
        },
    )
    assert {name: app.queues.place(name) for name in [*app.queues.routes, "other"]} == {
        "named": "bus: named",
        "url": "url: prod.url",
        "mapping": "mapping: mapping",
        "same": "url: same",
        "here": "broker: elsewhere",
        "other": "broker: other",
    }


def test_a_profile_has_what_the_queue_does_not_say() -> None:
    app = Taskline(
        "etl",
        broker="memory://home",
        connectors={"bus": "memory://bus"},
        profiles={"volley": {"broker": "bus", "serializer": "msgpack", "dead_letters": "dlq"}},
        queues={
            "a": {"profile": "volley"},
            "b": {"profile": "volley", "serializer": "json"},
            "dlq": {"broker": "bus", "name": "prod.dlq"},
        },
    )
    a, b = app.queues.routes["a"], app.queues.routes["b"]
    assert (a.connector, a.serializer, a.dead_letters) == ("bus", "msgpack", "dlq")
    assert (b.connector, b.serializer, b.dead_letters) == ("bus", "json", "dlq")


def test_it_is_read_from_files_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "taskline.yaml"
    file.write_text(
        "name: etl\nbroker: memory://home\nconnectors: {bus: 'memory://bus'}\n"
        "queues:\n  events: {broker: bus, name: prod.events.v1}\n"
    )
    assert Taskline.from_config(file).queues.place("events") == "bus: prod.events.v1"
    monkeypatch.setenv("TASKLINE_QUEUES", json.dumps({"events": {"name": "v2"}}))
    assert Taskline.from_config(file).queues.place("events") == "broker: v2"
    app = Taskline.from_config(file, queues={"events": {"name": "v3"}})
    assert app.queues.place("events") == "broker: v3"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (
            {"queues": {"a": {"brokr": "x"}}},
            "queues: a: unknown option 'brokr': did you mean 'brok",
        ),
        (
            {"queues": {"a": {"name": 5}}},
            "queues: a: Expected `str | null`, got `int` - at `$.name`",
        ),
        ({"queues": {"a": 5}}, "queues: a: Expected `object`, got `int`"),
        ({"queues": {"a": {}, "b": None}}, "queues: b: Expected `object`, got `null`"),
        ({"connectors": {"bus": 5}}, "connectors: bus: Expected `str | object | array`"),
        ({"queues": {"a b": {}}}, "queues: 'a b': a queue's name has no blanks"),
        ({"queues": {"a": {"name": ""}}}, "queues: a: name='' is empty: leave it out"),
        ({"queues": {"a": {"protocol": "amqp"}}}, "protocol='amqp': choose taskline or celery"),
        ({"protocol": "amqp"}, "protocol = 'amqp': choose taskline or celery"),
        ({"queues": {"a": {"broker": "bus"}}}, "broker='bus' is neither a URL nor one of connect"),
        (
            {"queues": {"a": {"broker": "buss"}}, "connectors": {"bus": "memory://"}},
            "did you mean 'bus'?",
        ),
        ({"queues": {"a": {"profile": "v"}}}, "queues: a: unknown profile 'v': there are none"),
        ({"profiles": {"v": {"profile": "w"}}}, "profiles: v: a profile has no profile of its own"),
        ({"profiles": {"v": {"nam": "w"}}}, "profiles: v: unknown option 'nam'"),
        ({"queues": {"a": {"serializer": "pickle"}}}, "serializer='pickle': accept has only json"),
        ({"queues": {"a": {"name": "x"}, "b": {"name": "x"}}}, "a and b are the same queue 'x'"),
        (
            {"queues": {"a": {"broker": "memory://x", "dead_letters": "dlq"}}},
            "dead_letters='dlq' is at another broker",
        ),
        ({"queues": {"a": {}}, "queue": 5}, "queue = 5"),
        ({"queues": {"a": {"plain": True}}, "compression": "zlib"}, "plain messages are JSON"),
        ({"queues": {"a": {"plain": True, "serializer": "msgpack"}}}, "plain messages are JSON"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(settings: dict[str, Any], complaint: str) -> None:
    assert complaint in refused(**settings)


def test_a_password_of_a_connector_is_not_told() -> None:
    assert "secret" not in refused(connectors={"bus": 5, "other": "redis://:secret@host"})


def test_an_app_without_such_queues_talks_to_its_broker_alone() -> None:
    app = Taskline("etl", broker="memory://plain", queues={"a": {"serializer": "msgpack"}})
    assert app.transport.info()["transport"] == "memory"


# Sending


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Taskline]:
    """Two files: the broker, and `bus`, where `events` and its dead letters are."""
    app = Taskline(
        "etl",
        broker=f"sqlite:///{tmp_path}/home.db",
        backend=f"sqlite:///{tmp_path}/results.db",
        connectors={"bus": f"sqlite:///{tmp_path}/bus.db"},
        queues={
            "events": {
                "broker": "bus",
                "name": "prod.events.v1",
                "serializer": "msgpack",
                "model": f"{__name__}:Event",
                "dead_letters": "events-dlq",
            },
            "events-dlq": {"broker": "bus", "name": "prod.events.dlq"},
            "raw": {"broker": "bus", "name": "raw.v1", "task": "etl.take", "model": Event},
        },
    )

    @app.task(name="etl.handle", queue="events")
    def handle(event: Event) -> int:
        if event.count < 0:
            raise ValueError("less than nothing")
        return len(event.user) * event.count

    @app.task(name="etl.take", queue="raw")
    def take(event) -> str:  # type: ignore[no-untyped-def]
        assert isinstance(event, Event)
        return event.user

    @app.task(name="etl.plain")
    def plain(text: str) -> str:
        return text

    with app:
        yield app


@pytest.fixture
def worker(app: Taskline) -> Iterator[Worker]:
    worker = Worker(app, WorkerOptions(threads=2))
    worker.start()
    yield worker
    worker.stop(5)


def test_messages_go_where_their_queue_is_in_its_serializer(app: Taskline, tmp_path: Path) -> None:
    with app.batch():
        app.tasks["etl.handle"].delay(Event("ann"))
        app.tasks["etl.plain"].delay("x")
        app.tasks["etl.plain"].options(queue="raw-too").delay("y")
    (event,) = open_transport(f"sqlite:///{tmp_path}/bus.db").peek("prod.events.v1")
    assert split(event.frame)[0].serializer == "msgpack"
    home = open_transport(f"sqlite:///{tmp_path}/home.db")
    assert [each.queue for each in home.stats()] == ["default", "raw-too"]
    assert [each.queue for each in app.transport.stats()] == ["default", "events", "raw-too"]


def test_the_call_decides_on_the_serializer_before_the_queue_does(app: Taskline) -> None:
    app.send_task("etl.handle", (Event("ann"),), queue="events")
    app.send_task("etl.handle", (Event("bob"),), queue="events", serializer="json")
    frames = [each.frame for each in app.transport.peek("events")]
    assert sorted(split(frame)[0].serializer for frame in frames) == ["json", "msgpack"]


@pytest.mark.parametrize(
    "args", [(), (Event("a"), 1), ({"user": "ann", "count": "many"},), ({"count": 1},), (5,)]
)
def test_a_queue_with_a_model_carries_nothing_else(app: Taskline, args: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidArguments, match="the queue events carries"):
        app.send_task("unheard.of", args, queue="events")
    with pytest.raises(InvalidArguments, match="the queue events carries"):
        app.tasks["etl.plain"].options(queue="events").apply_async(("text",))
    assert app.transport.stats() == []


def test_a_model_that_is_not_there_is_told_when_it_is_needed() -> None:
    app = Taskline("etl", broker="memory://m", queues={"a": {"model": "no.such:Model"}})
    with pytest.raises(ConfigurationError, match=r"model='no.such:Model' cannot be loaded"):
        app.send_task("t", (1,), queue="a")
    app = Taskline("etl", broker="memory://m", queues={"a": {"model": "Model"}})
    with pytest.raises(ConfigurationError, match="names no module: write package"):
        app.send_task("t", (1,), queue="a")


# Working


def test_one_worker_serves_several_brokers(app: Taskline, worker: Worker) -> None:
    handle, plain = app.tasks["etl.handle"], app.tasks["etl.plain"]
    results = [handle.delay(Event("ann", n)) for n in range(20)]
    others = [plain.delay(str(n)) for n in range(20)]
    assert [each.get(timeout=20) for each in results] == [3 * n for n in range(20)]
    assert [each.get(timeout=20) for each in others] == [str(n) for n in range(20)]


def test_dead_letters_are_kept_under_the_queue_that_is_named(
    app: Taskline, worker: Worker, tmp_path: Path
) -> None:
    result = app.tasks["etl.handle"].delay(Event("ann", -1))
    with pytest.raises(ValueError, match="less than nothing"):
        result.get(timeout=20)
    (letter,) = buried(app, queue="events-dlq")
    assert (letter.id, letter.queue) == (result.id, "events-dlq")
    there = open_transport(f"sqlite:///{tmp_path}/bus.db")
    assert [each.queue for each in there.dead_letters()] == ["prod.events.dlq"]
    assert app.dead.requeue([letter]) == [result.id]
    with pytest.raises(ValueError, match="less than nothing"):
        result.get(timeout=20)
    assert [each.queue for each in buried(app)] == ["events-dlq"]


def test_what_another_app_calls_otherwise_is_retried_and_buried_here(
    app: Taskline, tmp_path: Path
) -> None:
    """The sender's name for the queue stands in the message; it means nothing here."""
    sender = Taskline(
        "other",
        broker=f"sqlite:///{tmp_path}/bus.db",
        queues={"outbound": {"name": "prod.events.v1"}},
    )
    app.tasks["etl.handle"].policy = None
    with sender:
        result = sender.send_task(
            "etl.handle", (Event("ann", -1),), queue="outbound", retry={"max": 1, "wait": 0}
        )
    worker = Worker(app, WorkerOptions(threads=1))
    worker.start()
    try:
        with pytest.raises(ValueError, match="less than nothing"):
            app.AsyncResult(result.id).get(timeout=20)
    finally:
        worker.stop(5)
    (letter,) = buried(app)
    assert (letter.queue, letter.attempt) == ("events-dlq", 2)
    assert app.dead.requeue([letter]) == [result.id]
    assert [each.queue for each in app.transport.stats() if each.ready] == ["events"]


def test_a_plain_message_of_another_program_is_a_call_of_the_queues_task(
    app: Taskline, worker: Worker
) -> None:
    """As a program would write it that has never heard of Taskline."""
    for key, frame in (
        ("p1", b'{"user": "ann"}'),
        ("p2", b'{"user": 5}'),
        ("p3", b"not JSON"),
    ):
        app.transport.parts()["bus"].send([_plain(key, frame)])
    assert app.AsyncResult("p1").get(timeout=20) == "ann"
    with pytest.raises(InvalidArguments, match="the queue raw carries"):
        app.AsyncResult("p2").get(timeout=20)
    with pytest.raises(Exception, match="not a Taskline message"):
        app.AsyncResult("p3").get(timeout=20)
    letters = {each.id: each for each in buried(app, 2)}
    assert set(letters) == {"p2", "p3"}
    assert letters["p3"].frame == b"not JSON"


def test_a_plain_message_is_looked_at_as_the_call_that_it_will_be(app: Taskline) -> None:
    app.transport.parts()["bus"].send([_plain("p1", b'{"user": "ann"}'), _plain("p2", b"not JSON")])
    shown = {each.id: each.frame for each in app.transport.peek("raw")}
    header, body = app.codec.open(shown["p1"])
    assert (header.task, header.queue) == ("etl.take", "raw")
    assert app.codec.arguments(header, body) == ([{"user": "ann"}], {})
    assert shown["p2"] == b"not JSON"


def _plain(key: str, frame: bytes) -> Any:
    from taskline.testing.cases.transport import message

    return message(key, "raw.v1", frame=frame)


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Taskline]:
    """`out` is for other programs, `both` is read here too."""
    app = Taskline(
        "out",
        broker=f"sqlite:///{tmp_path}/out.db",
        backend=f"sqlite:///{tmp_path}/results.db",
        serializer="msgpack",
        signing_key="a key of sixteen characters",
        accept_unsigned=True,
        queues={
            "out": {"plain": True, "name": "prod.out"},
            "both": {"plain": True, "task": "out.take", "model": Event},
        },
    )

    @app.task(name="out.take", queue="both", retry={"max": 1, "wait": 0})
    def take(event: Event) -> str:
        if current_task.attempt == 1:
            raise Retry("again")
        return event.user

    @app.task(name="out.pass")
    def pass_on(*numbers: int) -> int:
        publish: Any = app.by_name("publish").options(queue="out")
        return emit(publish.si(*numbers), result=len(numbers))

    with app:
        yield app


def test_a_plain_queue_gets_the_payload_alone(out: Taskline) -> None:
    out.send_task("publish", (Event("ann"),), queue="out")
    (stored,) = out.transport.peek("out")
    assert stored.frame == b'{"user":"ann","count":1}'
    for args, options in (((1, 2), {}), ((), {}), ((1,), {"serializer": "msgpack"})):
        with pytest.raises(TransportError, match="the queue out carries plain JSON"):
            out.send_task("publish", args, queue="out", **options)  # type: ignore[arg-type]


def test_what_is_plain_comes_back_as_a_call_and_is_retried(out: Taskline) -> None:
    result = out.tasks["out.take"].delay(Event("ann"))
    worker = Worker(out, WorkerOptions(threads=1))
    worker.start()
    try:
        assert out.AsyncResult(result.id).get(timeout=20) == "ann"
        assert out.tasks["out.pass"].delay(7).get(timeout=20) == 1
        out.tasks["out.pass"].delay(7, 8)
        (letter,) = buried(out)
        assert "carries plain JSON" in letter.reason
    finally:
        worker.stop(5)
    (stored,) = out.transport.peek("out")
    assert stored.frame == b"7"


def test_eager_tasks_get_their_model(tmp_path: Path) -> None:
    app = Taskline("etl", broker="memory://e", eager=True, queues={"raw": {"model": Event}})

    @app.task(queue="raw")
    def take(event) -> str:  # type: ignore[no-untyped-def]
        assert isinstance(event, Event)
        return event.user

    assert take.delay(Event("ann")).get() == "ann"


def test_a_worker_needs_only_the_brokers_of_its_queues(tmp_path: Path) -> None:
    app = Taskline(
        "etl",
        broker=f"sqlite:///{tmp_path}/home.db",
        queues={"far": {"broker": "redis://127.0.0.1:1?timeout=0.1"}},
    )
    with app:
        worker = Worker(app, WorkerOptions(queues=["default"]))
        worker.start()
        worker.stop(5)
        with pytest.raises(TransportError):
            app.send_task("t", queue="far")


# For people


def test_the_command_line_shows_where_queues_are(
    app: Taskline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from taskline.cli.root import cli

    app.tasks["etl.handle"].delay(Event("ann"))
    config = tmp_path / "etl_app.py"
    config.write_text(
        "from taskline import Taskline\n"
        f"app = Taskline('etl', broker='sqlite:///{tmp_path}/home.db', queues={{'events': "
        f"{{'broker': 'sqlite:///{tmp_path}/bus.db', 'name': 'prod.events.v1'}}}})\n"
    )
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(cli, ["queues", "-A", "etl_app"], catch_exceptions=False)
    assert "events: prod.events.v1" in shown.output
    peeked = CliRunner().invoke(cli, ["queues", "peek", "events", "-A", "etl_app", "--json"])
    assert json.loads(peeked.output)[0]["queue"] == "events"
    doctor = CliRunner().invoke(cli, ["doctor", "-A", "etl_app", "--json"])
    checks = {json.loads(line)["check"] for line in doctor.output.splitlines()}
    assert {"broker", "events"} <= checks


def test_passwords_of_mappings_in_the_environment_are_not_shown() -> None:
    from taskline.cli.output import masked

    given = {"bus": {"type": "redis", "nodes": [{"host": "h", "password": "secret-1"}]}}
    shown = masked(json.dumps({**given, "url": "redis://:secret-2@h"}), "TASKLINE_CONNECTORS")
    assert "secret" not in shown
    assert json.loads(shown)["bus"]["nodes"][0]["host"] == "h"
    assert masked('{"broken: secret') == "***"
