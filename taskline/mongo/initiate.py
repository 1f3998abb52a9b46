"""Makes a server a replica set of one member, where it is in none yet; never a second time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pymongo
from pymongo.errors import OperationFailure

from taskline.clock import Clock
from taskline.errors import ConfigurationError, TransportError
from taskline.mongo.failures import ALREADY_INITIALIZED, NOT_YET_INITIALIZED
from taskline.mongo.location import Location

log = logging.getLogger("taskline.mongo")

PAUSE = 0.05


def initiate(
    location: Location, clock: Clock, open_client: Callable[..., pymongo.MongoClient[Any]]
) -> None:
    """Ask the server; initiate it if it says that it is in no replica set.

    The member's name is the address that clients use, because they follow what the
    server's configuration names. Raises the driver's errors, `ConfigurationError` where
    the server is in another replica set, `TransportError` where it does not become primary.
    """
    alone = tuple((k, v) for k, v in location.options if k.lower() != "replicaset")
    client = open_client(location._replace(options=alone), directConnection=True)
    try:
        hello = client.admin.command("hello")
        name = hello.get("setName")
        if name is None and _is_new(client):
            _initiate(client, location)
            name = _named(client, location, clock)
        if name != location.replica_set:
            what = f"is in the replica set {name!r}" if name else "is in no replica set"
            raise ConfigurationError(
                f"MongoDB at {location} {what}, not in {location.replica_set!r}: "
                "start mongod with --replSet and that name, or name the one it has"
            )
    finally:
        client.close()


def _is_new(client: pymongo.MongoClient[Any]) -> bool:
    try:
        client.admin.command("replSetGetStatus")
    except OperationFailure as error:
        if error.code == NOT_YET_INITIALIZED:
            return True
        if error.code == 76:  # NoReplicationEnabled: started without --replSet
            return False
        raise
    return False


def _initiate(client: pymongo.MongoClient[Any], location: Location) -> None:
    name = location.replica_set
    members = [{"_id": 0, "host": location.hosts[0]}]
    try:
        client.admin.command("replSetInitiate", {"_id": name, "members": members})
    except OperationFailure as error:
        if error.code != ALREADY_INITIALIZED:  # somebody else was faster
            raise
    else:
        log.info("MongoDB at %s: made it the replica set %r of one member", location, name)


def _named(client: pymongo.MongoClient[Any], location: Location, clock: Clock) -> Any:
    """The name of the server's replica set, once it takes writes."""
    until = clock.monotonic() + location.timeout
    while True:
        hello = client.admin.command("hello")
        if hello.get("isWritablePrimary") or clock.monotonic() > until:
            break
        clock.sleep(PAUSE)
    if not hello.get("isWritablePrimary"):
        raise TransportError(
            f"MongoDB at {location}: no primary {location.timeout:g} s after it was initiated"
        )
    return hello.get("setName")
