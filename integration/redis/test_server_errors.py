"""What a server may answer with, and what its user is told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from integration.conftest import server_or_skip
from integration.servers.process import free_port
from integration.servers.redis import RedisServer
from taskline.backends import open_backend
from taskline.errors import BackendError, TransportError
from taskline.testing.cases.transport import message, messages
from taskline.transports import open_transport


@pytest.fixture
def server() -> Iterator[RedisServer]:
    yield from server_or_skip(
        lambda: RedisServer(users={"ann": "on >se-cret ~{taskline}* &{taskline}* +@all"})
    )


def test_an_unreachable_server_is_named_without_its_password() -> None:
    port = free_port()
    transport = open_transport(f"redis://ann:se-cret@127.0.0.1:{port}?timeout=0.2")
    with pytest.raises(TransportError, match=f"127.0.0.1:{port}: cannot connect") as caught:
        transport.send([message()])
    assert caught.value.retryable
    assert "se-cret" not in str(caught.value)
    transport.close()


def test_a_full_server_says_so_and_can_still_be_drained(server: RedisServer) -> None:
    transport = open_transport(server.url)
    transport.send(messages(20))
    server.do("CONFIG", "SET", "maxmemory", "1mb")
    with pytest.raises(TransportError, match="maxmemory is reached") as caught:
        transport.send(messages(1))
    assert not caught.value.retryable
    taken = transport.receive(["mail"], 100, 30, 0, "w")
    assert len(taken) == 20
    assert transport.extend(taken, 30) == []
    assert transport.release(taken[:5]) == []
    assert transport.ack(taken[5:]) == []
    transport.close()


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_server_that_evicts_is_refused(server: RedisServer, policy: str) -> None:
    server.do("CONFIG", "SET", "maxmemory-policy", policy)
    transport, backend = open_transport(server.url), open_backend(server.url)
    with pytest.raises(TransportError, match="maxmemory-policy noeviction") as caught:
        transport.ping()
    assert not caught.value.retryable
    with pytest.raises(BackendError, match=policy):
        backend.ping()
    transport.close()
    backend.close()


def test_a_wrong_password_is_told_at_once(server: RedisServer) -> None:
    transport = open_transport(f"redis://ann:wrong@127.0.0.1:{server.port}")
    with pytest.raises(TransportError, match="user or password is wrong") as caught:
        transport.ping()
    assert not caught.value.retryable
    transport.close()


@pytest.mark.parametrize("more", ["", "+client|unblock"])
def test_a_user_as_documented_can_do_everything(server: RedisServer, more: str) -> None:
    rules = "reset on >se-cret ~{taskline}* &{taskline}* +@all -@dangerous -@admin +info"
    server.do("ACL", "SETUSER", "ann", *rules.split(), *more.split())
    url = f"redis://ann:se-cret@127.0.0.1:{server.port}"
    transport, backend = open_transport(url), open_backend(url)
    transport.ping()
    transport.send(messages(1))
    assert transport.ack(transport.receive(["mail"], 1, 30, 1, "w")) == []
    assert backend.wait(["x"], 0.01) == {}
    for _ in range(2):
        threading.Timer(0.05, transport.interrupt).start()
        assert transport.receive(["mail"], 1, 30, 60, "w") == []
    transport.close()
    backend.close()


def test_a_replica_is_refused(server: RedisServer) -> None:
    server.do("REPLICAOF", "127.0.0.1", free_port())
    transport = open_transport(f"{server.url}?timeout=0.2")
    with pytest.raises(TransportError, match="replica") as caught:
        transport.send([message()])
    assert caught.value.retryable
    transport.close()


def test_keys_of_somebody_else_are_not_touched(server: RedisServer) -> None:
    server.do("SET", "{taskline}m", "mine")
    transport = open_transport(server.url)
    with pytest.raises(TransportError, match="namespace of its own"):
        transport.send([message()])
    assert "mine" in server.do("GET", "{taskline}m")
    transport.close()


def test_scripts_come_back_after_they_were_flushed(server: RedisServer) -> None:
    transport = open_transport(server.url)
    transport.send(messages(2))
    server.do("SCRIPT", "FLUSH")
    transport.send(messages(1))
    server.do("SCRIPT", "FLUSH")
    taken = transport.receive(["mail"], 10, 30, 0, "w")
    assert len(taken) == 3
    server.do("SCRIPT", "FLUSH")
    assert transport.ack(taken) == []
    transport.close()


def test_a_restart_is_one_line_on_loss_and_one_on_return(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    transport = open_transport(server.url)
    transport.send([message()])
    server.kill()
    server.start()
    with caplog.at_level(logging.INFO, "taskline"):
        transport.send([message()])
        transport.send([message()])
    assert [each.levelname for each in caplog.records] == ["WARNING", "INFO"]
    assert "was lost" in caplog.messages[0]
    transport.close()


def test_a_unix_socket_serves() -> None:
    for server in server_or_skip(lambda: RedisServer(unix_socket=True)):
        transport = open_transport(f"unix://{server.unix_socket}")
        transport.ping()
        transport.send(messages(1))
        assert len(transport.receive(["mail"], 10, 30, 0, "w")) == 1
        assert transport.info()["address"] == f"unix://{server.unix_socket}"
        transport.close()
