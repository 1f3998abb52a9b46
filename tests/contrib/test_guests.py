"""Connectors of Volley and brokers of Django Q, as users write them, under Taskline's seam."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contrib.django_q_plugin import NoReceipts

from taskline import Taskline, current_task
from taskline.clock import SYSTEM_CLOCK
from taskline.errors import ConfigurationError, NotSupported, Reject, Retry, TransportError
from taskline.message import DeadLetter
from taskline.registry import Spec
from taskline.testing.cases.transport import LONG, ids, letter, message, messages
from taskline.transports import open_transport
from taskline.transports.base import Transport
from taskline.worker import Worker, WorkerOptions

VOLLEY = {
    "type": "taskline_contrib.volley.VolleyTransport",
    "consumer": "contrib.volley_plugin.MyConsumer",
    "producer": "contrib.volley_plugin.MyProducer",
    "poll": 0.01,
}
DJANGO_Q = {
    "type": "taskline_contrib.django_q.DjangoQTransport",
    "broker": "contrib.django_q_plugin.MyBroker",
    "poll": 0.01,
}


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOLLEY_FILE", str(tmp_path / "volley.db"))
    monkeypatch.setenv("DJANGO_Q_FILE", str(tmp_path / "django_q.db"))


@pytest.fixture(params=[VOLLEY, DJANGO_Q], ids=["volley", "django_q"])
def broker(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def transport(broker: Spec) -> Iterator[Transport]:
    transport = open_transport(broker)
    yield transport
    transport.close()


# Through an app


@pytest.fixture
def app(broker: Any, tmp_path: Path) -> Iterator[Taskline]:
    app = Taskline("guests", broker=broker, backend=f"sqlite:///{tmp_path}/results.db")

    @app.task(name="guests.work", retry={"max": 2, "wait": 0.05})
    def work(number: int) -> int:
        if number < 0 and current_task.attempt < 3:
            raise Retry("once more")
        return number

    @app.task(name="guests.reject")
    def reject() -> None:
        raise Reject("not wanted")

    with app:
        yield app


@pytest.fixture
def worker(app: Taskline) -> Iterator[Worker]:
    worker = Worker(app, WorkerOptions(threads=2))
    worker.start()
    yield worker
    worker.stop(5)


def test_tasks_run_and_their_retries_wait(app: Taskline, worker: Worker) -> None:
    work = app.tasks["guests.work"]
    results = [work.delay(number) for number in range(-3, 20)]
    assert [each.get(timeout=20) for each in results] == list(range(-3, 20))


def test_a_rejected_task_is_in_the_queue_of_dead_letters(app: Taskline, worker: Worker) -> None:
    import msgspec

    result = app.tasks["guests.reject"].delay()
    with pytest.raises(Exception, match="not wanted"):
        result.get(timeout=20)
    transport = app.open_transport()
    by = app.clock.monotonic() + 20
    while not (found := transport.receive(["default-dead"], 1, LONG, 0.05, "reader")):
        assert app.clock.monotonic() < by
    written = msgspec.json.decode(found[0].frame, type=DeadLetter)
    assert (written.id, written.reason) == (result.id, "not wanted")
    transport.ack(found)
    transport.close()


def test_what_cannot_be_done_is_refused(app: Taskline) -> None:
    with pytest.raises(NotSupported, match="cannot delay messages"):
        app.send_task("guests.work", (1,), countdown=60)
    for call in (
        lambda: list(app.dead.find()),
        lambda: app.dead.requeue(["x"]),
        lambda: app.dead.purge(["x"]),
        lambda: app.transport.dead_letter("x"),
    ):
        with pytest.raises(NotSupported, match="messages of the queue QUEUE-dead"):
            call()
    with pytest.raises(NotSupported, match="cannot show messages"):
        app.transport.peek("default")
    with pytest.raises(NotSupported, match="cannot delete a message"):
        app.transport.delete(["x"])
    assert app.transport.capabilities.durable
    assert not app.transport.capabilities.fencing


# At the seam


def test_a_delivery_serves_once(transport: Transport) -> None:
    transport.send(messages(1))
    held = transport.receive(["mail"], 1, LONG, 5, "w")
    assert transport.extend(held, LONG) == []
    assert transport.ack(held) == []
    assert transport.ack(held) == held
    assert transport.extend(held, LONG) == held
    assert transport.release(held) == held
    assert transport.replace([(held[0], message(held[0].id))]) == held
    assert transport.bury([(held[0], letter(held[0]))]) == held


def test_what_is_given_back_comes_again(transport: Transport) -> None:
    transport.send([sent := _framed(1)])
    held = transport.receive(["mail"], 1, LONG, 5, "w")
    assert transport.release(held) == []
    again = transport.receive(["mail"], 1, LONG, 5, "w")
    assert transport.release(again, 0.1) == []
    assert transport.receive(["mail"], 1, LONG, 0, "w") == []
    later = transport.receive(["mail"], 1, LONG, 5, "w")
    assert ids(later) == [sent.header.id]
    assert transport.ack(later) == []


def test_no_more_than_asked_for_and_the_rest_is_not_forgotten(transport: Transport) -> None:
    transport.send(sent := [_framed(number) for number in range(7)])
    taken = []
    while len(taken) < 7:
        found = transport.receive(["mail"], 2, LONG, 5, "w")
        assert 1 <= len(found) <= 2
        taken += found
    assert sorted(ids(taken)) == sorted(ids(sent))
    assert transport.ack(taken) == []


def test_what_waits_for_its_time_goes_back_when_it_is_closed(broker: Any) -> None:
    first = open_transport(broker)
    first.send([sent := _framed(1)])
    held = first.receive(["mail"], 1, LONG, 5, "w")
    eta = SYSTEM_CLOCK.time() + 0.5
    first.replace([(held[0], _framed(1, sent.header.id, eta=eta))])
    assert first.receive(["mail"], 1, LONG, 0, "w") == []
    first.close()
    second = open_transport(broker)
    found = second.receive(["mail"], 1, LONG, 10, "w")
    assert ids(found) == [sent.header.id]
    assert SYSTEM_CLOCK.time() >= eta
    assert second.ack(found) == []
    second.close()


def test_what_is_no_message_keeps_its_bytes(transport: Transport) -> None:
    transport.send([message(frame=b"\x00\xff no frame")])
    (found,) = transport.receive(["mail"], 1, LONG, 5, "w")
    assert bytes(found.frame) == b"\x00\xff no frame"
    transport.ack([found])


def test_purging(transport: Transport) -> None:
    transport.send(messages(5))
    assert transport.purge("mail") == 5
    assert transport.receive(["mail"], 1, LONG, 0, "w") == []


def test_an_interrupt_ends_a_wait(transport: Transport) -> None:
    found: list[Any] = []
    waiting = threading.Thread(
        target=lambda: found.append(transport.receive(["mail"], 1, LONG, 600, "w")),
        name="test-wait",
        daemon=True,
    )
    waiting.start()
    transport.interrupt()
    waiting.join(20)
    assert found == [[]]


def test_it_answers_and_tells_about_itself(transport: Transport, broker: Any) -> None:
    transport.ping()
    info = transport.info()
    assert info["transport"] == transport.scheme
    assert info["address"].endswith(("MyBroker", "MyConsumer"))
    transport.maintain()
    assert transport.recover("w", []) == 0
    transport.close()
    with pytest.raises(TransportError, match="is closed"):
        transport.send(messages(1))


def test_django_q_counts(transport: Transport) -> None:
    if transport.scheme != "django_q":
        pytest.skip("Volley's connectors do not count")
    transport.send(messages(5))
    held = transport.receive(["mail"], 2, LONG, 5, "w")
    (stats,) = transport.stats(["mail"])
    # One dequeue took three: the third waits here.
    assert (stats.ready, stats.leased, stats.dead) == (2, 3, 0)
    transport.bury([(held[0], letter(held[0]))])
    (stats,) = transport.stats(["mail"])
    assert (stats.ready, stats.leased, stats.dead) == (2, 2, 1)


@pytest.mark.parametrize("broker", [DJANGO_Q], ids=["django_q"])
def test_a_broker_without_receipts_is_refused_unless_that_is_wanted(broker: Any) -> None:
    bare = {**broker, "broker": "contrib.django_q_plugin.NoReceipts"}
    NoReceipts.lists = {}
    strict = open_transport(bare)
    strict.send(messages(1))
    with pytest.raises(ConfigurationError, match="NoReceipts has no receipts"):
        strict.receive(["mail"], 1, LONG, 0, "w")
    assert len(NoReceipts.lists["mail"]) == 1
    lax = open_transport({**bare, "receipts": False})
    assert len(lax.receive(["mail"], 1, LONG, 0, "w")) == 1


def test_a_producer_that_confirms_by_callback() -> None:
    producer = "contrib.volley_plugin.MyConfirmingProducer"
    transport = open_transport({**VOLLEY, "producer": producer})
    transport.send([message(frame=b"lucky")])
    with pytest.raises(TransportError, match="did not store"):
        transport.send([message(frame=b"unlucky")])
    (found,) = transport.receive(["mail"], 5, LONG, 5, "w")
    assert bytes(found.frame) == b"lucky"
    transport.close()


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({"type": "volley", "producer": "x.Y"}, "needs 'consumer'"),
        ({"type": "volley", "consumer": "no.Such", "producer": "x.Y"}, "No module named 'no'"),
        ({"type": "django_q"}, "needs the dotted path of a class"),
        ("django_q://", "needs the dotted path of a class"),
        ("django_q://contrib.django_q_plugin.Nothing", "has no attribute 'Nothing'"),
        ("django_q://x.Y?receipts=perhaps", "it is true or false"),
    ],
)
def test_wrong_specs_are_told(spec: Spec, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from taskline.registry import Kind
    from taskline.transports import TRANSPORTS

    for name in ("volley", "django_q"):
        path = f"taskline_contrib.{name}:{'Volley' if name == 'volley' else 'DjangoQ'}Transport"
        monkeypatch.setitem(TRANSPORTS.known, name, Kind(path))
    with pytest.raises(ConfigurationError, match=complaint):
        open_transport(spec)


# A worker that is killed


def test_what_a_killed_worker_held_comes_again(broker: Any, tmp_path: Path) -> None:
    import json

    notes = tmp_path / "notes"
    backend = f"sqlite:///{tmp_path}/results.db"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.getcwd()]),
        "TASKLINE_BROKER": json.dumps(broker),
        "TASKLINE_BACKEND": backend,
        "NOTES": str(notes),
    }
    command = [sys.executable, "-m", "taskline", "worker", "-A", "contrib.guest_app", "-c", "1"]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL
        )

    with Taskline("caller", broker=broker, backend=backend) as caller:
        results = [caller.send_task("contrib.guest_app.note", (number,)) for number in range(40)]
        first = start()
        try:
            while not notes.exists() or len(notes.read_text().splitlines()) < 10:
                assert first.poll() is None
                caller.clock.sleep(0.01)
        finally:
            os.killpg(first.pid, signal.SIGKILL)
            first.wait()
        second = start()
        try:
            assert [each.get(timeout=60) for each in results] == list(range(40))
            assert {int(line) for line in notes.read_text().split()} == set(range(40))
        finally:
            second.terminate()
            assert second.wait(60) == 0


def _framed(number: int, key: str | None = None, eta: float | None = None) -> Any:
    """A message with a real frame, in which these connectors keep what they cannot."""
    import msgspec

    from taskline.message import Message, join

    made = message(key or f"framed-{number}", eta=eta)
    header = msgspec.structs.replace(made.header, deliveries=0)
    return Message(header, join(header, b"[[],{}]"))


def test_the_command_line_says_that_volleys_queues_are_not_counted(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from taskline.cli.root import cli

    config = tmp_path / "guests.yaml"
    config.write_text(json.dumps({"name": "guests", "broker": VOLLEY, "queue": "mail"}))
    for command in (["queues"], ["queues", "list", "mail"]):
        shown = CliRunner().invoke(cli, [*command, "--config", str(config)], catch_exceptions=False)
        assert shown.exit_code == 0
        assert shown.stdout.splitlines()[1].split() == ["mail", "-", "-", "-", "-", "-"]
        assert "no messages" not in shown.output


def test_a_plug_in_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unfit.py").write_text("raise RuntimeError('settings\\nare missing')")
    monkeypatch.syspath_prepend(tmp_path)
    said = "broker='unfit.Broker': importing unfit failed: RuntimeError: settings are missing"
    with pytest.raises(ConfigurationError, match=said):
        open_transport({**DJANGO_Q, "broker": "unfit.Broker"})
