"""Finds the server to talk to: the one that is named, a Sentinel's master, a cluster's node."""

from __future__ import annotations

from taskline.redis.connection import Connection, Lost, ServerError, pack
from taskline.redis.location import Location

REDIRECTIONS = 5


def connect(location: Location, protocol: int = 2) -> Connection:
    """A connection to the server that has the store; raises `Lost` or `ServerError`."""
    if not location.seeds:
        return Connection(location, protocol)
    errors = []
    for host, port in location.seeds:
        seed = location._replace(host=host, port=port, seeds=())
        try:
            if location.service:
                return _to_master(seed, protocol)
            return _to_keeper(seed, protocol)
        except Lost as error:
            errors.append(f"{host}:{port} {error}")
    raise Lost(f"no way to the store: {'; '.join(errors)}")


def _to_master(sentinel: Location, protocol: int) -> Connection:
    """Where a Sentinel says that the master is, if it is one."""
    asked = sentinel._replace(username="", password=sentinel.sentinel_password, database=0)
    connection = Connection(asked)
    try:
        found = connection.call(pack(["SENTINEL", "GET-MASTER-ADDR-BY-NAME", sentinel.service]))
    except ServerError as error:
        raise Lost(str(error)) from None
    finally:
        connection.close()
    if found is None:
        raise Lost(f"knows no master {sentinel.service!r}")
    host, port = found[0].decode(), int(found[1])
    connection = Connection(sentinel._replace(host=host, port=port), protocol)
    role = connection.call(pack(["ROLE"]))[0]
    if role != b"master":
        connection.close()
        raise Lost(f"names {host}:{port}, which is not the master yet")
    return connection


def _to_keeper(seed: Location, protocol: int) -> Connection:
    """The node that has the slot of the store's keys, to which the others redirect."""
    probe = pack(["EXISTS", f"{{{seed.namespace}}}p"])
    place = seed
    for _ in range(REDIRECTIONS):
        connection = Connection(place, protocol)
        try:
            connection.call(probe)
            return connection
        except ServerError as error:
            connection.close()
            if error.code != "MOVED":
                raise
            host, _, port = str(error).split()[2].rpartition(":")
            place = seed._replace(host=host.strip("[]") or place.host, port=int(port))
    raise Lost(f"redirected {REDIRECTIONS} times")
