"""A stand-in for Amazon SQS: moto's server, from PyPI."""

from __future__ import annotations

import importlib.util
import sys

from integration.servers.process import Server
from integration.servers.supply import Missing


class SQSServer(Server):
    """Queues in memory, slow, with visibility timeouts, delays and receive counts."""

    def __init__(self) -> None:
        super().__init__()
        if importlib.util.find_spec("moto") is None or importlib.util.find_spec("boto3") is None:
            raise Missing("no stand-in for SQS: pip install 'moto[sqs,server]' boto3")

    def command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    @property
    def transport_options(self) -> dict[str, object]:
        """For kombu."""
        return {"endpoint_url": f"http://127.0.0.1:{self.port}", "region": "us-east-1"}
