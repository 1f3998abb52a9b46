"""A broker refuses a request and takes later ones: nothing is said to be stored that is not.

A new partition's leader may not know of it yet when the first request comes (KAFKA-15591).
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from integration.conftest import server_or_skip
from integration.servers.kafka import KafkaServer
from integration.servers.process import free_port
from taskline.clock import SYSTEM_CLOCK
from taskline.errors import TransportError
from taskline.message import Message
from taskline.testing.cases.transport import message
from taskline.transports.kafka import KafkaTransport

pytestmark = pytest.mark.skipif(
    not os.environ.get("TASKLINE_TEST_KAFKA_ALL"), reason="minutes: set TASKLINE_TEST_KAFKA_ALL=1"
)

PRODUCE = 0
NOT_LEADER_OR_FOLLOWER = 6


class Refusing:
    """Forwards connections to a broker, but answers one produce request itself: not the leader."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.topic = ""
        """The topic, of one partition, whose next produce request is refused."""
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, name="refusing", daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                broker = socket.create_connection(("127.0.0.1", self._target), timeout=10)
                broker.settimeout(None)
                self._sockets += [client, broker]
                for work in (self._up, self._down):
                    threading.Thread(target=work, args=(client, broker), daemon=True).start()

    def _down(self, client: socket.socket, broker: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := broker.recv(65536):
                client.sendall(data)

    def _up(self, client: socket.socket, broker: socket.socket) -> None:
        with contextlib.suppress(OSError), client.makefile("rb") as requests:
            while size := requests.read(4):
                frame = requests.read(*struct.unpack(">i", size))
                key, version, number = struct.unpack_from(">hhi", frame)
                if key == PRODUCE and self.topic and self.topic.encode() in frame:
                    assert 9 <= version <= 12, "the layout of the answer below"
                    client.sendall(self._refusal(number))
                else:
                    broker.sendall(size + frame)

    def _refusal(self, number: int) -> bytes:
        """ProduceResponse, version 9: one topic, its partition 0."""
        topic, self.topic = self.topic.encode(), ""
        body = (
            struct.pack(">ibbb", number, 0, 2, len(topic) + 1)
            + topic
            + struct.pack(">bihqqq", 2, 0, NOT_LEADER_OR_FOLLOWER, -1, -1, -1)
            + struct.pack(">bbbbib", 1, 0, 0, 0, 0, 0)
        )
        return struct.pack(">i", len(body)) + body

    def close(self) -> None:
        for each in self._sockets:
            each.close()


@pytest.fixture(scope="module")
def refusing() -> Iterator[tuple[Refusing, str]]:
    """A proxy, and the URL of the broker behind it."""
    port = free_port()
    proxy = Refusing(port)
    for server in server_or_skip(
        lambda: KafkaServer(port, advertised_listeners=f"PLAINTEXT://127.0.0.1:{proxy.port}")
    ):
        yield proxy, server.url
    proxy.close()


def _messages() -> list[Message]:
    return [message(queue="mail", id=str(n)) for n in range(5)]


def _stored(transport: KafkaTransport) -> int:
    return transport.stats(["mail"])[0].ready or 0


def test_a_refused_request_is_sent_again(refusing: tuple[Refusing, str]) -> None:
    proxy, url = refusing
    options = "prefix=one.&partitions=1&batch.num.messages=1"
    transport = KafkaTransport.from_spec(f"{url}?{options}", SYSTEM_CLOCK)
    try:
        transport._cluster.need("one.mail")
        proxy.topic = "one.mail"
        transport.send(_messages())
        assert not proxy.topic, "nothing was refused"
        assert _stored(transport) == 5
    finally:
        transport.close()


def test_what_is_said_to_be_stored_and_not_where_is_an_error(
    refusing: tuple[Refusing, str],
) -> None:
    """A user's own setting: several requests under way."""
    proxy, url = refusing
    options = "prefix=five.&partitions=1&batch.num.messages=1&max.in.flight=5"
    transport = KafkaTransport.from_spec(f"{url}?{options}", SYSTEM_CLOCK)
    try:
        transport._cluster.need("five.mail")
        proxy.topic = "five.mail"
        with pytest.raises(TransportError, match=r"1 of 5 perhaps not at all"):
            transport.send(_messages())
        assert _stored(transport) == 4
        transport.send(_messages()[:1])
        assert _stored(transport) == 5
    finally:
        transport.close()
