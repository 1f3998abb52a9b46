# /// script
# dependencies = ["taskline", "pymongo"]
# ///
"""Taskline on MongoDB, as shipped.

Receipts are leases. Where results are kept, they are in the same server, for a day.
"""

from __future__ import annotations

from common import MONGODB
from ours import Ours

peer = Ours("taskline_mongodb", MONGODB or "mongodb://127.0.0.1")
app = peer.app
