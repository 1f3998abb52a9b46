"""Queues of the RSMQ protocol (npm `rsmq`, PyPI `PyRSMQ`, …) as a Taskline transport.

`docs/contrib/rsmq.md` tells what it keeps and what it does not.
"""

from taskline_contrib.rsmq.transport import RSMQTransport

__all__ = ["RSMQTransport"]
