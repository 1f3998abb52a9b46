"""Kafka as a task queue, with a receipt for every message."""

from taskline.transports.kafka.transport import KafkaTransport

__all__ = ["KafkaTransport"]
