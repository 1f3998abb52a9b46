"""Connectors of Volley as a broker: `{"type": "volley", "consumer": ..., "producer": ...}`.

`settings_of` makes settings of Volley's queue configuration; `python -m
taskline_contrib.volley config.yml` prints them as YAML.
"""

from taskline_contrib.volley.settings import settings_of
from taskline_contrib.volley.transport import VolleyTransport

__all__ = ["VolleyTransport", "settings_of"]
