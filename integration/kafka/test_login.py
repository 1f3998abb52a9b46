"""Logging in: SASL by PLAIN and SCRAM, over TLS, as KAFKA_KEY and KAFKA_SECRET say it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.conftest import server_or_skip
from integration.servers.kafka import KafkaServer
from integration.servers.process import free_port
from taskline.errors import TransportError
from taskline.registry import Spec
from taskline.testing.cases.transport import ids, message
from taskline.transports import open_transport

pytestmark = pytest.mark.skipif(
    not os.environ.get("TASKLINE_TEST_KAFKA_ALL"), reason="minutes: set TASKLINE_TEST_KAFKA_ALL=1"
)

USER, PASSWORD = "ann", "s3cret"
LOGIN = "org.apache.kafka.common.security"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for 127.0.0.1, signed by itself; its key stands beside it in `server.pem`."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl: apt-get install openssl")
    folder = tmp_path_factory.mktemp("tls")
    key, found = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key,
         "-out", found, "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    (folder / "server.pem").write_text(key.read_text() + found.read_text())
    return found


@pytest.fixture(scope="module")
def broker(certificate: Path) -> Iterator[KafkaServer]:
    """A broker whose `port` wants TLS and a login."""
    port, plain, controller = free_port(), free_port(), free_port()

    def make() -> KafkaServer:
        server = KafkaServer(
            port,
            {USER: PASSWORD},
            listeners=(
                f"LOGIN://127.0.0.1:{port},PLAINTEXT://127.0.0.1:{plain},"
                f"CONTROLLER://127.0.0.1:{controller}"
            ),
            controller_quorum_voters=f"1@127.0.0.1:{controller}",
            inter_broker_listener_name="PLAINTEXT",
            listener_security_protocol_map=(
                "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,LOGIN:SASL_SSL"
            ),
            sasl_enabled_mechanisms="PLAIN,SCRAM-SHA-512",
            ssl_keystore_type="PEM",
            ssl_keystore_location=str(certificate.with_name("server.pem")),
            **{
                "listener.name.login.plain.sasl.jaas.config": (
                    f'{LOGIN}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
                ),
                "listener.name.login.scram-sha-512.sasl.jaas.config": (
                    f"{LOGIN}.scram.ScramLoginModule required;"
                ),
            },
        )
        server.plain = f"127.0.0.1:{plain}"
        return server

    yield from server_or_skip(make)


def works(spec: Spec, name: str) -> None:
    """A message goes there, is delayed, and comes back."""
    assert isinstance(spec, dict)
    transport = open_transport({**spec, "prefix": f"{name}.", "group": name})
    try:
        transport.send([message("1")])
        (taken,) = transport.receive(["mail"], 1, 30.0, 20.0, "w")
        assert taken.id == "1"
        assert transport.release([taken], 0.3) == []
        assert ids(transport.receive(["mail"], 1, 30.0, 20.0, "w")) == ["1"]
    finally:
        transport.close()


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_a_user_and_a_password(
    broker: KafkaServer, certificate: Path, kafka_name: str, mechanism: str
) -> None:
    works(
        {
            "type": "kafka",
            "brokers": broker.address,
            "username": USER,
            "password": PASSWORD,
            "sasl.mechanism": mechanism,
            "ssl.ca.location": str(certificate),
        },
        kafka_name,
    )


def test_the_environment_says_all(
    broker: KafkaServer, certificate: Path, kafka_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "KAFKA_BROKERS": "127.0.0.1:1",  # nobody is there
        "KAFKA_PRODUCER_BROKERS": broker.address,
        "KAFKA_CONSUMER_BROKERS": broker.address,
        "KAFKA_KEY": USER,
        "KAFKA_SECRET": PASSWORD,
    }.items():
        monkeypatch.setenv(name, value)
    works({"type": "kafka", "ssl.ca.location": str(certificate)}, kafka_name)


@pytest.mark.parametrize(
    ("password", "authority", "said"),
    [("wrong", True, "uthentication failed"), (PASSWORD, False, "certificate verify failed")],
)
def test_who_is_not_let_in_is_told_why(
    broker: KafkaServer, certificate: Path, password: str, authority: bool, said: str
) -> None:
    spec = {"type": "kafka", "brokers": broker.address, "username": USER, "password": password}
    if authority:
        spec["ssl.ca.location"] = str(certificate)
    transport = open_transport({**spec, "timeout": 3})
    for act in (transport.ping, lambda: transport.send([message()])):
        with pytest.raises(TransportError, match=said) as refused:
            act()
        assert password not in str(refused.value)
    transport.close()
