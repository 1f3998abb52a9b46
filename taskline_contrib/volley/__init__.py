"""Connectors of Volley as a broker: `{"type": "volley", "consumer": ..., "producer": ...}`."""

from taskline_contrib.volley.transport import VolleyTransport

__all__ = ["VolleyTransport"]
