"""Indexes and versions of what is stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pymongo import IndexModel

from taskline.errors import TransportError

if TYPE_CHECKING:
    from taskline.mongo.client import Server


class Layout(NamedTuple):
    """What a part of the store (`messages`, `outcomes`) looks like in this release."""

    part: str
    version: int
    indexes: Mapping[str, Sequence[IndexModel]]
    """By collection; each index has a name."""
    migrations: Mapping[int, Callable[[Server], object]] = {}
    """What makes the next version of each older one. May be run twice, or by two at once."""


def prepare(server: Server, layout: Layout) -> None:
    """Make indexes where this store has none yet, and bring an older store to this version.

    One command where all is there. Raises the driver's errors, or `TransportError`
    where the store is of a later release.
    """
    meta = server.collection("meta")
    found = meta.find_one({"_id": layout.part})
    version = 0 if found is None else int(found["version"])
    if version == layout.version:
        return
    if version > layout.version:
        raise TransportError(
            f"MongoDB at {server.location}: its {layout.part} are of layout {version}, "
            f"this release knows {layout.version}: upgrade Taskline here",
            retryable=False,
        )
    for older in range(version, layout.version):
        migration = layout.migrations.get(older)
        if migration is not None:
            migration(server)
    for name, models in layout.indexes.items():
        server.collection(name).create_indexes(list(models))
    meta.update_one({"_id": layout.part}, {"$max": {"version": layout.version}}, upsert=True)
