"""What goes wrong between the `rsmq` transport and its server."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any

import pytest

from taskline.clock import SYSTEM_CLOCK
from taskline.errors import TransportError
from taskline.message import Delivery, Header, Message
from taskline_contrib.rsmq import RSMQTransport

Open = Callable[..., Any]


@pytest.fixture
def transport(redis_server: str, redis: Any) -> Iterator[RSMQTransport]:
    opened = RSMQTransport(f"{redis_server}/0", SYSTEM_CLOCK, poll=600)
    yield opened
    opened.close()


def message(id: str = "order-42") -> Message:
    return Message(Header(v=1, id=id, task="t", queue="mail", sent=0.0), b"frame")


def test_a_listener_whose_connection_was_cut_hears_again(
    transport: RSMQTransport, redis: Any, until: Open
) -> None:
    taken: list[Delivery] = []
    waiting = Thread(target=lambda: taken.extend(transport.receive(["mail"], 1, 600, 600, "w")))
    waiting.start()

    def listeners() -> set[str]:
        return {each["id"] for each in redis.client_list(_type="pubsub")}

    first = until(listeners)
    assert redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub") == 1
    assert not until(listeners) & first
    until(lambda: redis.pubsub_numsub("rsmq:rt:mail")[0][1])
    other = RSMQTransport(transport.info()["address"].removeprefix("rsmq://"), SYSTEM_CLOCK)
    other.send([message()])
    other.close()
    waiting.join(15)
    transport.interrupt()
    assert [each.id for each in taken] == ["order-42"]


def test_the_script_is_loaded_again_when_the_server_forgot_it(
    transport: RSMQTransport, redis: Any
) -> None:
    transport.send([message("a")])
    redis.script_flush()
    transport.send([message("b")])
    assert len(transport.receive(["mail"], 5, 600, 0, "w")) == 2


def test_a_connection_that_was_cut_between_two_calls_is_replaced(
    transport: RSMQTransport, redis: Any
) -> None:
    transport.send([message("a")])
    redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    transport.send([message("b")])
    assert transport.stats(["mail"])[0].ready == 2


def test_a_server_that_is_not_there_is_one_line_that_may_pass() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        transport = RSMQTransport(f":secret@{address}/0", SYSTEM_CLOCK)
        for call in (transport.ping, lambda: transport.send([message()])):
            with pytest.raises(TransportError, match=address) as lost:
                call()
            assert lost.value.retryable
            assert "\n" not in str(lost.value)
            assert "secret" not in str(lost.value)
        transport.close()


def test_a_wrong_password_is_no_passing_trouble(redis_server: str, redis: Any) -> None:
    transport = RSMQTransport(f"nobody:wrong@{redis_server}/0", SYSTEM_CLOCK)
    with pytest.raises(TransportError) as refused:
        transport.ping()
    assert not refused.value.retryable
    assert "wrong@" not in str(refused.value)
    transport.close()


def test_a_closed_transport_says_so(transport: RSMQTransport) -> None:
    transport.close()
    with pytest.raises(TransportError, match="closed"):
        transport.send([message()])


def test_messages_of_two_namespaces_do_not_meet(redis_server: str, redis: Any) -> None:
    one = RSMQTransport(f"{redis_server}/0", SYSTEM_CLOCK, ns="one")
    two = RSMQTransport(f"{redis_server}/0", SYSTEM_CLOCK, ns="two")
    one.send([message()])
    assert two.receive(["mail"], 1, 600, 0, "w") == []
    assert {key.partition(b":")[0] for key in redis.scan_iter()} == {b"one"}
    one.close()
    two.close()


def test_all_that_taskline_wrote_goes_with_its_messages(
    transport: RSMQTransport, redis: Any
) -> None:
    """What a namespace has after its messages are done is RSMQ's own."""
    transport.send([message(str(number)) for number in range(20)])
    held = transport.receive(["mail"], 20, 600, 0, "w")
    transport.release(held[:5])
    transport.ack(held[5:])
    assert transport.purge("mail") == 5
    assert sorted(redis.keys()) == [b"rsmq:QUEUES", b"rsmq:mail:Q"]
    fields = {b"vt", b"delay", b"maxsize", b"created", b"modified", b"totalsent", b"totalrecv"}
    assert set(redis.hkeys("rsmq:mail:Q")) == fields
