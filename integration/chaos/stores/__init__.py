"""What the driver must know of each store: its servers, its addresses, and how it is broken."""

from __future__ import annotations

import importlib

from integration.chaos.stores.base import Store

NAMES = ("sqlite", "redis", "mongodb", "kafka", "rabbitmq")


def store_class(name: str) -> type[Store]:
    """The store of that name; its driver is imported only now."""
    module = importlib.import_module(f"integration.chaos.stores.{name}")
    found: type[Store] = module.CLASS
    return found
