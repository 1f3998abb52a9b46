"""Kafka: the transport on a real broker."""
