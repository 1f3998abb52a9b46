"""A RabbitMQ server with an Erlang node, a cookie and an epmd of its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from functools import cache
from pathlib import Path

from integration.servers.process import Server, free_port
from integration.servers.supply import Missing, from_debian

REMEDY = (
    "no rabbitmq-server: apt-get install rabbitmq-server, "
    "or name a running one in TASKLINE_TEST_RABBITMQ"
)
START_WITHIN = 90.0
"""Seconds; Erlang starts slowly on a busy machine."""


@cache
def rabbitmq_program() -> str:
    """The path of rabbitmq-server, installed first where that is allowed; raises `Missing`."""
    found = from_debian("rabbitmq-server", "rabbitmq-server")
    if found is None:
        raise Missing(REMEDY)
    return found


class RabbitMQServer(Server):
    """One node that keeps its data through `kill` and `start`, without any plug-in.

    Run as root it runs as the user rabbitmq, as Debian's script wants it.
    """

    def __init__(self, *settings: str) -> None:
        """`settings` are lines of rabbitmq.conf."""
        super().__init__()
        self.program = rabbitmq_program()
        self.node = f"taskline-{secrets.token_hex(4)}@localhost"
        self._distribution, self._epmd = free_port(), free_port()
        conf = self.directory / "rabbitmq.conf"
        conf.write_text("\n".join(["loopback_users = none", *settings]) + "\n")
        (self.directory / "enabled_plugins").write_text("[].\n")
        home = self.directory / "home"
        home.mkdir()
        cookie = home / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(10))
        cookie.chmod(0o400)
        if os.geteuid() == 0:
            with contextlib.suppress(KeyError):
                user = pwd.getpwnam("rabbitmq")
                self.directory.chmod(0o755)
                for each in [self.directory, *self.directory.rglob("*")]:
                    os.chown(each, user.pw_uid, user.pw_gid)

    @property
    def environment(self) -> dict[str, str]:
        """What makes the node one of its own, for the server and for rabbitmqctl."""
        return {
            **os.environ,
            "HOME": str(self.directory / "home"),
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.directory / "log"),
            "RABBITMQ_PID_FILE": str(self.directory / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none",
            "ERL_EPMD_PORT": str(self._epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    def command(self) -> list[str]:
        return [_script(self.program)]

    def start(self) -> None:
        """Run the server and wait until it takes AMQP connections."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user="rabbitmq" if os.geteuid() == 0 else None,
            )
        end = time.monotonic() + START_WITHIN
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > end:
                tail = self.log.read_text(errors="replace")[-2000:]
                self.kill()
                raise RuntimeError(f"rabbitmq-server did not start:\n{tail}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        """Whether the server speaks AMQP; its port is open somewhat earlier."""
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe,
        ):
            probe.sendall(b"AMQP\x00\x00\x09\x01")
            return bool(probe.recv(1))
        return False

    def stop(self) -> None:
        """End it as an administrator does: all is on disk then."""
        process = self.process
        if process is not None and process.poll() is None:
            with contextlib.suppress(OSError):
                pid = int((self.directory / "pid").read_text())
                os.kill(pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=30)
        self.kill()

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End the node and its helpers at once; its epmd, a daemon, with it."""
        super().kill(how)
        for pid in _pids_with(f"ERL_EPMD_PORT={self._epmd}"):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    @property
    def url(self) -> str:
        """For kombu."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def _script(program: str) -> str:
    """The server's own script: Debian's wrapper changes the user, and wants to be root."""
    own = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    return str(own) if own.exists() else program


def _pids_with(variable: str) -> list[int]:
    """The processes whose environment has this variable: ours alone have the port."""
    found = []
    for each in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError, ValueError):
            if variable.encode() in each.read_bytes().split(b"\0"):
                found.append(int(each.parent.name))
    return found
