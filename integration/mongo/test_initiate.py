"""A server becomes a replica set of one member, once. On a scripted server: no stand-in does this.

What it answers is what MongoDB documents for a mongod that was started with --replSet.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from integration.mongo.scripted import HELLO, Document, Scripted
from taskline.clock import SYSTEM_CLOCK
from taskline.errors import ConfigurationError, TransportError
from taskline.mongo.client import Server
from taskline.mongo.layout import Layout
from taskline.mongo.location import locate


class Mongod:
    """Started with --replSet, or without; initiated, or not yet."""

    def __init__(self, replica_set: str | None = None, *, replicates: bool = True) -> None:
        self.config: Document | None = None
        self.replicates = replicates
        self.faster: Document | None = None
        """A configuration that another client brings first."""
        self.elects = True
        self.server = Scripted(self.answer)
        self.address = f"127.0.0.1:{self.server.port}"
        if replica_set is not None:
            self.config = {"_id": replica_set, "members": [{"_id": 0, "host": self.address}]}

    def answer(self, name: str, command: Document) -> Document:
        if name == "hello":
            return {**HELLO, **self.hello()}
        if name == "replSetGetStatus":
            if not self.replicates:
                return refused(76, "NoReplicationEnabled", "not running with --replSet")
            if self.config is None:
                return refused(94, "NotYetInitialized", "no replset config has been received")
            return {"ok": 1, "set": self.config["_id"]}
        if name == "replSetInitiate":
            if self.faster is not None:
                self.config = self.faster
            if self.config is not None:
                return refused(23, "AlreadyInitialized", "already initialized")
            self.config = command["replSetInitiate"]
            return {"ok": 1}
        if name in ("find", "aggregate"):
            return {"ok": 1, "cursor": {"id": 0, "ns": "x.y", "firstBatch": []}}
        return {"ok": 1, "n": 1, "nModified": 1}

    def hello(self) -> Document:
        if not self.replicates:
            return {"isWritablePrimary": True}
        if self.config is None:
            return {"isWritablePrimary": False, "secondary": False, "isreplicaset": True}
        hosts = [member["host"] for member in self.config["members"]]
        primary = {"primary": hosts[0]} if self.elects else {}
        return {
            "setName": self.config["_id"], "setVersion": 1, "hosts": hosts, "me": hosts[0],
            "isWritablePrimary": self.elects, "secondary": not self.elects, **primary,
        }  # fmt: skip

    def opened(self, replica_set: str = "rs0") -> Server:
        node = {"host": "127.0.0.1", "port": self.server.port, "replica_set": replica_set}
        (location,) = locate({"type": "mongo", "params": {"nodes": [node]}, "timeout": 2})
        return Server(location, SYSTEM_CLOCK, Layout("things", 1, {}))


def refused(code: int, name: str, text: str) -> Document:
    return {"ok": 0, "code": code, "codeName": name, "errmsg": text}


@pytest.fixture
def mongod() -> Iterator[Mongod]:
    mongod = Mongod()
    with mongod.server:
        yield mongod


def used(server: Server) -> Any:
    try:
        return server.run(lambda: server.collection("things").find_one({}))
    finally:
        server.close()


def test_a_new_server_is_initiated_under_the_name_that_clients_use(mongod: Mongod) -> None:
    used(mongod.opened())
    assert mongod.config == {"_id": "rs0", "members": [{"_id": 0, "host": mongod.address}]}
    assert mongod.server.count("replSetInitiate") == 1


def test_never_a_second_time(mongod: Mongod) -> None:
    for _ in range(3):
        used(mongod.opened())
    assert mongod.server.count("replSetInitiate") == 1


def test_two_who_come_at_once_agree(mongod: Mongod) -> None:
    mongod.faster = {"_id": "rs0", "members": [{"_id": 0, "host": mongod.address}]}
    used(mongod.opened())
    assert mongod.config is mongod.faster


def test_a_server_of_another_replica_set_is_left_alone() -> None:
    mongod = Mongod("theirs")
    with (
        mongod.server,
        pytest.raises(ConfigurationError, match="is in the replica set 'theirs', not in 'rs0'"),
    ):
        used(mongod.opened())
    assert mongod.server.count("replSetInitiate") == 0


def test_a_server_without_replication_is_told_of() -> None:
    mongod = Mongod(replicates=False)
    with (
        mongod.server,
        pytest.raises(ConfigurationError, match="is in no replica set, not in 'rs0': start mongod"),
    ):
        used(mongod.opened())
    assert mongod.server.count("replSetInitiate") == 0


def test_one_that_does_not_become_primary_is_an_error(mongod: Mongod) -> None:
    mongod.elects = False
    with pytest.raises(TransportError, match=r"no primary 2 s after it was initiated"):
        used(mongod.opened())


def test_a_server_that_nobody_initiated_says_so_when_that_is_not_wanted(mongod: Mongod) -> None:
    (location,) = locate(f"mongodb://{mongod.address}/?timeout=1&directConnection=true")
    server = Server(location, SYSTEM_CLOCK, Layout("things", 1, {}))
    used(server)
    assert mongod.server.count("replSetInitiate") == 0
