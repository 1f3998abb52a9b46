"""Brokers of Django Q as a broker: `{"type": "django_q", "broker": "module.MyBroker"}`."""

from taskline_contrib.django_q.transport import DjangoQTransport

__all__ = ["DjangoQTransport"]
