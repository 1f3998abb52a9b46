"""Messages within a transaction of the user's own, in the user's own session.

The transaction and the messages are on one deployment. Its change stream tells the
workers of the messages at the commit.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import pymongo
from pymongo import UpdateOne
from pymongo.client_session import ClientSession
from pymongo.errors import PyMongoError

from taskline.errors import ConfigurationError
from taskline.message import Message
from taskline.mongo.client import Document, Server
from taskline.transports.mongodb import records
from taskline.transports.mongodb.store import Store

TRANSIENT = "TransientTransactionError"
"""The driver's label for what `with_transaction` tries again."""

Deployment = tuple[str, frozenset[str]]
"""A replica set's name and members, or the addresses of routers."""

_known: weakref.WeakKeyDictionary[pymongo.MongoClient[Any], Deployment] = (
    weakref.WeakKeyDictionary()
)


def check(session: Any, stores: Sequence[Store]) -> tuple[ClientSession, Store]:
    """The session and the store of its deployment; raises `ConfigurationError`."""
    if not isinstance(session, ClientSession):
        raise ConfigurationError(
            f"session= is a {type(session).__name__}: give pymongo's ClientSession, which "
            "client.start_session() makes and whose transaction the messages are to be part of"
        )
    if session.has_ended:
        raise ConfigurationError("session= has ended: use it within its `with` block")
    if not session.in_transaction:
        raise ConfigurationError(
            "session= has no transaction open: session.start_transaction() before the batch, and "
            "commit after it"
        )
    theirs = stores[0].server.run(partial(_deployment, session.client))
    for store in stores:
        name, members = store.server.run(partial(_deployment, store.server.client))
        if name == theirs[0] and members & theirs[1]:
            return session, store
    raise ConfigurationError(
        f"session= is of a client of {_text(theirs)}, but the broker is "
        f"{' and '.join(str(each.server.location) for each in stores)}: a transaction is on one "
        "deployment"
    )


def add(session: ClientSession, server: Server, messages: Sequence[Message]) -> None:
    """Store the messages whose ids are not there, when the session's transaction commits."""
    location = server.location
    collection = session.client[location.database][f"{location.namespace}.messages"]
    changes = []
    for message in messages:
        document = records.document(message, server.stamp())
        key = {"_id": document.pop("_id")}
        # An insert of an id that is there would end the transaction.
        changes.append(UpdateOne(key, {"$setOnInsert": document}, upsert=True))
    try:
        collection.bulk_write(changes, ordered=False, session=session)
    except PyMongoError as error:
        if error.has_error_label(TRANSIENT):
            raise  # for `with_transaction`, which knows what to do with it
        raise server.translate(error) from None


def _deployment(client: pymongo.MongoClient[Document]) -> Deployment:
    found = _known.get(client)
    if found is None:
        hello = client.admin.command("hello")
        members = hello.get("hosts") or [f"{host}:{port}" for host, port in client.nodes]
        found = _known[client] = (hello.get("setName", ""), frozenset(members))
    return found


def _text(deployment: Deployment) -> str:
    name, members = deployment
    return f"{name or 'MongoDB'} ({', '.join(sorted(members))})"
