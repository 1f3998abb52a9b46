"""RSMQ's clients from npm and PyPI behind one face, for the tests of interoperability."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from integration.servers.supply import Missing

VERSION = "0.12.4"
"""Of npm's rsmq."""
INSTALL_WITHIN = 180.0
"""Seconds."""


class Refused(Exception):
    """The client answered with an error; the message is its name."""


def npm_modules() -> Path:
    """The folder with npm's rsmq, installed into the user's cache at the first call."""
    if shutil.which("node") is None:
        raise Missing("no node: apt-get install nodejs npm")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "taskline-tests"
    home = cache / f"rsmq-{VERSION}"
    if not home.exists():
        if shutil.which("npm") is None:
            raise Missing("no npm: apt-get install npm")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            # Other processes may install it at the same time; one of them puts it in place.
            fresh = Path(directory) / "rsmq"
            fresh.mkdir()
            done = subprocess.run(
                [
                    *("npm", "install", "--prefix", str(fresh), "--no-audit", "--no-fund"),
                    f"rsmq@{VERSION}",
                ],
                capture_output=True,
                text=True,
                timeout=INSTALL_WITHIN,
                check=False,
            )
            if done.returncode:
                line = " ".join(done.stderr.split())[-200:]
                raise Missing(f"npm install rsmq@{VERSION} failed: is a registry reachable? {line}")
            try:
                fresh.rename(home)
            except OSError:
                if not home.exists():
                    raise
    return home / "node_modules"


class Npm:
    """npm's rsmq in a process of node's, with its realtime on."""

    publishes = True

    def __init__(self, port: int) -> None:
        modules = npm_modules()
        self._process = subprocess.Popen(
            ["node", str(Path(__file__).parent / "rsmq_client.js"), str(port)],
            env={**os.environ, "NODE_PATH": str(modules)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, method: str, **options: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([method, options]), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise Refused(answer["error"])
        return answer["ok"]

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class PyRSMQ:
    """PyPI's PyRSMQ. It never publishes."""

    publishes = False

    def __init__(self, port: int) -> None:
        try:
            from rsmq import RedisSMQ
        except ImportError:
            raise Missing("no PyRSMQ: pip install PyRSMQ") from None
        self._rsmq = RedisSMQ(host="127.0.0.1", port=port, ns="rsmq")

    def __call__(self, method: str, **options: Any) -> Any:
        from rsmq.cmd.exceptions import NoMessageInQueue, RedisSMQException

        try:
            return getattr(self._rsmq, method)(**options).execute()
        except NoMessageInQueue:
            return {}
        except RedisSMQException as error:
            raise Refused(type(error).__name__) from error

    def close(self) -> None:
        self._rsmq.client.close()


CLIENTS = {"npm": Npm, "PyRSMQ": PyRSMQ}
