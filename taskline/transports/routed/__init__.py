"""Several transports as one: see `transport.py`."""

from taskline.transports.routed.transport import RoutedTransport as RoutedTransport
