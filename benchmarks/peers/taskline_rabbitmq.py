# /// script
# dependencies = ["taskline"]
# ///
"""Taskline on RabbitMQ by kombu, as shipped: every send is confirmed."""

from __future__ import annotations

from common import RABBITMQ
from ours import Ours

peer = Ours("taskline_rabbitmq", f"kombu+{RABBITMQ or 'amqp://'}", keeps_results=False)
app = peer.app
