# /// script
# dependencies = ["celery==5.7.0", "confluent-kafka==2.16.1"]
# ///
"""Celery on Kafka by kombu's confluentkafka: see `celeries`.

Its acknowledgement commits what was read so far, whichever message it is for. Each send waits
for the broker (`flush`). It polls for 5 seconds at a time as it comes, which makes no difference
while there is something to do.
"""

from __future__ import annotations

from celeries import OfCelery
from common import KAFKA, empty_group


class CeleryKafka(OfCelery):
    lacks = ("bulk", "results")
    scale = 0.1

    def empty(self) -> bool:
        return empty_group("celery-consumer-group", "celery")


peer = CeleryKafka("celery_kafka", f"confluentkafka://{KAFKA}")
app = peer.app
