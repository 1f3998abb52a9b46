"""Disque as a Taskline transport, for those who still run one.

No Disque server could be had to test it with: it is tested against a server of the
tests' own that follows Disque's documentation and source (1.0-rc1).
`docs/contrib/disque.md` tells what it keeps and what it does not.
"""

from taskline_contrib.disque.transport import DisqueTransport

__all__ = ["DisqueTransport"]
