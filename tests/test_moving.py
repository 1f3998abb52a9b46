from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from taskline import Taskline
from taskline.cli.root import cli
from taskline.clock import ManualClock
from taskline.message import Header, Message
from taskline.moving import drain
from taskline.transports import open_transport
from taskline.transports.base import Transport

COUNT = 1200


@pytest.fixture
def app(tmp_path: Path) -> Taskline:
    return Taskline("moved", broker=f"sqlite:///{tmp_path}/new.db", clock=ManualClock())


@pytest.fixture
def old(tmp_path: Path, app: Taskline) -> Transport:
    return open_transport(f"sqlite:///{tmp_path}/old.db", clock=app.clock)


def message(app: Taskline, id: str, *, queue: str = "q", eta: float | None = None) -> Message:
    header = Header(1, id, "some.task", queue, app.clock.time(), eta=eta, priority=7, attempt=2)
    return app.codec.encode(header, [[id], {}])


def test_all_that_waits_is_moved_once_and_in_order(app: Taskline, old: Transport) -> None:
    ids = [f"id{number:04}" for number in range(COUNT)]
    old.send([message(app, each) for each in ids])
    old.send([message(app, "other", queue="r")])
    moved = drain(old, app.transport, app.codec)
    assert (moved.ready, moved.delayed, moved.held, moved.dead) == (COUNT + 1, 0, 0, 0)
    assert [(each.queue, each.ready) for each in old.stats() if each.ready] == []
    taken = app.transport.receive(["q"], 2000, 30, 0, "c")
    taken += app.transport.receive(["q"], 2000, 30, 0, "c")
    assert [delivery.id for delivery in taken] == ids
    header, body = app.codec.open(taken[0].frame)
    assert (header.priority, header.attempt) == (7, 2)
    assert app.codec.arguments(header, body) == (["id0000"], {})
    assert taken[0].deliveries == 2, "deliveries goes on counting"


def test_delayed_messages_stay_delayed(app: Taskline, old: Transport) -> None:
    due = app.clock.time() + 3600
    old.send([message(app, f"id{number}", eta=due) for number in range(COUNT)])
    moved = drain(old, app.transport, app.codec)
    assert (moved.ready, moved.delayed) == (0, COUNT)
    assert app.transport.receive(["q"], 10, 30, 0, "c") == []
    assert isinstance(app.clock, ManualClock)
    app.clock.advance(3601)
    assert len(app.transport.receive(["q"], 10, 30, 0, "c")) == 10
    assert old.receive(["q"], 10, 30, 0, "c") == []


def test_what_workers_hold_and_dead_letters_are_left_and_counted(
    app: Taskline, old: Transport
) -> None:
    old.send([message(app, "held")])
    assert old.receive(["q"], 1, 30, 0, "worker")
    frame = b"no message at all"
    old.send([Message(Header(1, "bad", "t", "q", 0.0), frame)])
    moved = drain(old, app.transport, app.codec)
    assert (moved.ready, moved.unreadable, moved.held, moved.dead) == (0, 1, 1, 1)
    [letter] = old.dead_letters("q")
    assert (letter.id, letter.frame) == ("bad", frame)


def test_killed_in_between_it_is_repeated_without_loss(app: Taskline, old: Transport) -> None:
    class Dies(Exception):
        pass

    old.send([message(app, f"id{number}") for number in range(10)])
    ack = old.ack

    def die(*_: object) -> None:
        raise Dies

    old.ack = die  # type: ignore[method-assign, assignment]
    with pytest.raises(Dies):
        drain(old, app.transport, app.codec)
    old.ack = ack  # type: ignore[method-assign]
    assert isinstance(app.clock, ManualClock)
    app.clock.advance(61)
    assert drain(old, app.transport, app.codec).ready == 10
    assert len(app.transport.receive(["q"], 100, 30, 0, "c")) == 10


def test_the_command(tmp_path: Path) -> None:
    old, new = f"sqlite:///{tmp_path}/a.db", f"sqlite:///{tmp_path}/b.db"
    sender = Taskline("sender", broker=old)
    sender.send_task("some.task", [1])
    sender.close()
    run = CliRunner().invoke
    done = run(cli, ["queues", "drain-node", old, "--broker", new, "--json"])
    assert (done.exit_code, '"ready": 1' in done.output or '"ready":1' in done.output) == (0, True)
    done = run(cli, ["queues", "drain-node", new, "--broker", new])
    assert done.exit_code == 2
    assert "take it out of the configuration first" in done.output + done.stderr
