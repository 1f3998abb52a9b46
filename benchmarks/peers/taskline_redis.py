# /// script
# dependencies = ["taskline"]
# ///
"""Taskline on Redis, as shipped.

Receipts are leases. Where results are kept, they are in the same server, for a day.
"""

from __future__ import annotations

from common import REDIS
from ours import Ours

peer = Ours("taskline_redis", REDIS or "redis://127.0.0.1")
app = peer.app
