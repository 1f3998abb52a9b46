"""A server as a child process: its port, its directory, its start and its certain end."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

START_WITHIN = 60.0
"""Seconds in which a server must listen."""
PORTS = range(16384, 32768)
"""Where free ports are looked for: Linux takes none of these for connections that go out."""

DIES_WITH_US = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit("the tests have ended")
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def bound(command: list[str]) -> list[str]:
    """A command that Linux kills when the thread that starts it ends, as in a killed test run.

    See prctl(2); a program of another user is not killed.
    """
    if sys.platform != "linux":
        return command
    return [sys.executable, "-I", "-S", "-c", DIES_WITH_US, str(os.getpid()), *command]


def free_port() -> int:
    """A port of the loopback interface that nobody uses now."""
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Server:
    """One server process, run by `command()`. It may be started again after `kill`."""

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="taskline-server-"))
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """The program and its arguments."""
        raise NotImplementedError

    @property
    def log(self) -> Path:
        return self.directory / "server.log"

    def start(self) -> None:
        """Run the server and wait until it listens; raises with the end of its log."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                bound(self.command()),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        end = time.monotonic() + START_WITHIN
        while not self.listens():
            if self.process.poll() is not None or time.monotonic() > end:
                tail = self.log.read_text(errors="replace")[-2000:]
                self.kill()
                raise RuntimeError(f"{self.command()[0]} did not start:\n{tail}")
            time.sleep(0.01)

    def listens(self) -> bool:
        """Whether the server takes connections."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End the server's process group at once, and wait until it is gone."""
        process = self.process
        if process is None:
            return
        self.process = None
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGCONT)
            os.killpg(process.pid, how)
        process.wait(timeout=START_WITHIN)

    def pause(self) -> None:
        """Freeze the server: its sockets stay open and nobody answers."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen server go on."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGCONT)

    def close(self) -> None:
        """Kill the server and remove its directory."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
