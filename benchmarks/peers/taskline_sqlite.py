# /// script
# dependencies = ["taskline"]
# ///
"""Taskline on SQLite, as shipped."""

from __future__ import annotations

from common import DIRECTORY, DURABILITY
from ours import Ours

peer = Ours("taskline_sqlite", f"sqlite:///{DIRECTORY / 'taskline.db'}?durability={DURABILITY}")
app = peer.app
