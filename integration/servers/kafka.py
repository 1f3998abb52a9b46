"""Apache Kafka itself, from Maven Central: one broker that is its own controller (KRaft)."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
import time
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from integration.servers.process import Server, free_port
from integration.servers.supply import Missing, from_debian

REPOSITORY = "https://repo.maven.apache.org/maven2"
JARS = Path(__file__).with_suffix(".jars")
"""SHA-256 and path of Kafka's jar and of all that it needs, as sha256sum writes them."""
CLUSTER = "dGFza2xpbmUtdGVzdHMtMQ"
FETCH_WITHIN = 60.0
"""Seconds for one jar."""
ANSWERS_WITHIN = 60.0
"""Seconds in which a broker must answer; a machine with nothing else to do needs two."""
REMEDY = (
    "no Kafka: java 17 is needed (apt-get install openjdk-17-jre-headless) and Maven Central"
    " within reach, or a running broker named in TASKLINE_TEST_KAFKA"
)


@cache
def java_program() -> str:
    """The path of java, installed first where that is allowed; raises `Missing`."""
    found = from_debian("java", "openjdk-17-jre-headless")
    if found is None:
        raise Missing(REMEDY)
    return found


@cache
def kafka_jars() -> list[Path]:
    """Kafka's jars, fetched into the user's cache where they are not there; raises `Missing`."""
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache_home / "taskline-tests" / "kafka"
    directory.mkdir(parents=True, exist_ok=True)
    wanted = [line.split() for line in JARS.read_text().splitlines()]
    with (directory / "lock").open("w") as lock, ThreadPoolExecutor(8) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return list(pool.map(lambda each: _fetch(directory, *each), wanted))
        except OSError as error:
            raise Missing(f"{REMEDY} ({error})") from error


def _fetch(directory: Path, digest: str, path: str) -> Path:
    jar = directory / f"{digest[:12]}-{Path(path).name}"
    if not jar.exists():
        with urllib.request.urlopen(f"{REPOSITORY}/{path}", timeout=FETCH_WITHIN) as answer:
            content = answer.read()
        if hashlib.sha256(content).hexdigest() != digest:
            raise OSError(f"{path} is not what was pinned in {JARS.name}")
        part = jar.with_suffix(".part")
        part.write_bytes(content)
        part.rename(jar)
    return jar


class KafkaServer(Server):
    """One broker. Topics are made by who wants them; sessions may be as short as half a second."""

    plain = ""
    """host:port of a listener without TLS and login, where `port` is not one."""

    def __init__(
        self, port: int | None = None, users: Mapping[str, str] | None = None, **properties: str
    ) -> None:
        """`properties` are added to server.properties, with `_` for `.` in their names.

        `users` may log in by SCRAM-SHA-512 with these passwords, where a listener wants that.
        """
        super().__init__(port)
        self._controller = free_port()
        self._java = java_program()
        self._classes = os.pathsep.join(map(str, kafka_jars()))
        self._users = users or {}
        self._properties = self.directory / "server.properties"
        values = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": (
                f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self._controller}"
            ),
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "log.dirs": str(self.directory / "data"),
            # A broker that was killed may come back when its last session is over.
            "broker.session.timeout.ms": "1000",
            "broker.heartbeat.interval.ms": "200",
            "auto.create.topics.enable": "false",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "500",
            "group.share.min.record.lock.duration.ms": "1000",
            "log.segment.bytes": "16777216",
            "log.index.size.max.bytes": "65536",
            "log.cleaner.dedupe.buffer.size": "2000000",
            "num.network.threads": "2",
            "num.io.threads": "2",
            "offsets.topic.num.partitions": "4",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            **{name.replace("_", "."): value for name, value in properties.items()},
        }
        self._properties.write_text("".join(f"{k}={v}\n" for k, v in values.items()))

    def _run(self, *arguments: str) -> list[str]:
        return [
            self._java,
            "-Xms64m",
            "-Xmx320m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Xshare:auto",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=error",
            "-cp",
            self._classes,
            *arguments,
        ]

    def command(self) -> list[str]:
        return self._run("kafka.Kafka", str(self._properties))

    def start(self) -> None:
        """Format the storage if it is new, run the broker and wait until it answers."""
        if not (self.directory / "data" / "meta.properties").exists():
            arguments = ["format", "-t", CLUSTER, "-c", str(self._properties)]
            for name, password in self._users.items():
                arguments += ["-S", f"SCRAM-SHA-512=[name={name},password={password}]"]
            subprocess.run(
                self._run("kafka.tools.StorageTool", *arguments),
                check=True,
                capture_output=True,
                timeout=ANSWERS_WITHIN,
            )
        super().start()
        self.wait()

    def wait(self) -> None:
        """Return when the broker answers; raises `RuntimeError` when it does not in time.

        It is asked at `plain`: tests of logging in have another listener for that.
        """
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        client = AdminClient(
            {
                "bootstrap.servers": self.plain or self.address,
                "reconnect.backoff.max.ms": 100,
                "log_level": 0,
                "error_cb": lambda error: None,
            }
        )
        end = time.monotonic() + ANSWERS_WITHIN
        while True:
            with contextlib.suppress(KafkaException):
                client.list_topics(timeout=1)
                return
            if time.monotonic() > end:
                raise RuntimeError(f"Kafka does not answer at {self.address}")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"kafka://{self.address}"


class RunningKafka:
    """A broker that runs already: TASKLINE_TEST_KAFKA, as `host:port` or a URL."""

    def __init__(self, given: str) -> None:
        self.address = given.removeprefix("kafka://").partition("/")[0].partition("?")[0]
        self.url = f"kafka://{self.address}"
