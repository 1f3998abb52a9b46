# /// script
# dependencies = ["celery==5.7.0"]
# ///
"""Celery on RabbitMQ: see `celeries`.

Its sends are confirmed, as ours are: it ships without that, and then loses what a broker refuses.
"""

from __future__ import annotations

from celeries import OfCelery
from common import RABBITMQ


class CeleryRabbitMQ(OfCelery):
    def empty(self) -> bool:
        with self.app.connection_for_write() as connection:
            return connection.default_channel.queue_declare("celery", passive=True)[1] == 0


peer = CeleryRabbitMQ(
    "celery_rabbitmq", RABBITMQ, broker_transport_options={"confirm_publish": True}
)
app = peer.app
