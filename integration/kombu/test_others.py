"""SQS and a directory, as kombu has them: a few steps each, for they are slow or simple."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from integration.servers.sqs import SQSServer
from taskline.clock import SYSTEM_CLOCK
from taskline.errors import NotSupported
from taskline.message import Delivery
from taskline.testing.cases.transport import ids, letter, message, messages
from taskline.transports import open_transport
from taskline.transports.base import Transport

BOUND = 20.0


@pytest.fixture
def sqs(sqs_server: SQSServer, own_prefix: str) -> dict[str, Any]:
    return {
        "type": "kombu",
        "url": f"sqs://key:secret@127.0.0.1:{sqs_server.port}",
        "prefix": own_prefix.replace(".", "-"),
        "transport_options": sqs_server.transport_options,
    }


@pytest.fixture
def directory(tmp_path: Path) -> dict[str, Any]:
    for name in ("messages", "control"):
        (tmp_path / name).mkdir()
    return {
        "type": "kombu",
        "url": "filesystem://",
        "transport_options": {
            "data_folder_in": str(tmp_path / "messages"),
            "data_folder_out": str(tmp_path / "messages"),
            "control_folder": str(tmp_path / "control"),
        },
    }


def take(transport: Transport, number: int, lease: float = 30.0) -> list[Delivery]:
    taken: list[Delivery] = []
    until = SYSTEM_CLOCK.monotonic() + BOUND
    while len(taken) < number:
        assert SYSTEM_CLOCK.monotonic() < until, f"{len(taken)} of {number} arrived"
        taken += transport.receive(["mail"], number - len(taken), lease, 1.0, "w")
    return taken


@pytest.mark.parametrize("broker", ["sqs", "directory"])
def test_the_life_of_messages(broker: str, request: pytest.FixtureRequest) -> None:
    transport = open_transport(request.getfixturevalue(broker))
    transport.send(sent := messages(4))
    done, again, back, dead = take(transport, 4)
    assert sorted(ids([done, again, back, dead])) == sorted(ids(sent))
    assert transport.extend([done], 30) == []
    assert transport.ack([done]) == []
    assert transport.replace([(again, message(again.id, frame=b"2"))]) == []
    assert transport.release([back]) == []
    assert transport.bury([(dead, letter(dead))]) == []
    taken = {each.id: each for each in take(transport, 2)}
    assert (taken[again.id].frame, taken[again.id].deliveries) == (b"2", 2)
    assert (taken[back.id].deliveries, taken[back.id].lost) == (2, 0)
    assert transport.ack(list(taken.values())) == []
    assert ids(transport.dead_letters()) == [dead.id]
    assert transport.requeue([message(dead.id)]) == [dead.id]
    assert take(transport, 1)[0].deliveries == 2
    transport.close()


@pytest.mark.parametrize("broker", ["sqs", "directory"])
def test_a_message_waits_until_it_is_due(broker: str, request: pytest.FixtureRequest) -> None:
    transport = open_transport(request.getfixturevalue(broker))
    clock = transport.clock
    due = clock.time() + 1.0
    transport.send([message(eta=due)])
    take(transport, 1)
    assert clock.time() >= due - 0.05
    transport.close()


def test_a_lease_at_sqs_ends_unless_it_is_renewed(sqs: dict[str, Any]) -> None:
    transport, other = open_transport(sqs), open_transport(sqs)
    transport.send([message()])
    (held,) = take(transport, 1, lease=5.0)
    until = SYSTEM_CLOCK.monotonic() + 6.0
    while SYSTEM_CLOCK.monotonic() < until:
        assert transport.extend([held], 5.0) == []
        assert other.receive(["mail"], 1, 30, 0.5, "other") == []
    assert transport.extend([held], 1.0) == []
    (again,) = take(other, 1)
    assert (again.id, again.deliveries, again.lost) == (held.id, 2, 1)
    transport.close()
    other.close()


def test_what_cannot_be_done_is_refused(directory: dict[str, Any]) -> None:
    transport = open_transport(directory)
    with pytest.raises(NotSupported, match="cannot show messages without taking them"):
        transport.peek("mail")
    with pytest.raises(NotSupported, match="revoke the task instead"):
        transport.delete(["x"])
    assert not transport.capabilities.durable
    transport.close()
