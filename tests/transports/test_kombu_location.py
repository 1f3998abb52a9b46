"""kombu+ URLs and mappings: what is Taskline's, what is kombu's, what is wrong."""

from __future__ import annotations

import pytest

from taskline.clock import SYSTEM_CLOCK
from taskline.errors import ConfigurationError
from taskline.transports import open_transport
from taskline.transports.kombu import KombuTransport
from taskline.transports.kombu.location import locate


def test_a_url_is_kombus_with_options_of_ours() -> None:
    found = locate("kombu+amqp://ann:secret@host:5673/v?prefix=x.&queue_type=quorum&timeout=2.5")
    assert found.url == "amqp://ann:secret@host:5673/v"
    assert (found.prefix, found.queue_type, found.timeout) == ("x.", "quorum", 2.5)
    assert str(found) == "amqp://ann:***@host:5673/v"


def test_kombus_own_parameters_stay() -> None:
    found = locate("kombu+redis://host/1?priorities=0&ssl_cert_reqs=none")
    assert (found.url, found.priorities) == ("redis://host/1?ssl_cert_reqs=none", 0)


def test_several_brokers_are_kombus_failover() -> None:
    found = locate("kombu+amqp://one//;amqp://u:p@two//")
    assert found.url == "amqp://one//;amqp://u:p@two//"
    assert str(found) == "amqp://one//;amqp://u:***@two//"


def test_a_url_with_a_further_plus() -> None:
    assert locate("kombu+sqla+sqlite:///x.db").url == "sqla+sqlite:///x.db"


def test_a_mapping() -> None:
    found = locate({"type": "kombu", "url": "sqs://", "transport_options": {"region": "eu-west-1"}})
    assert found.transport_options == {"region": "eu-west-1"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "kombu+nosuch://host",
            "kombu cannot open nosuch://host: it has no transport 'nosuch'; it has: amqp, ",
        ),
        (
            "kombu+amqp://h?colour=red",
            "cannot open amqp://h: it has no option 'colour'; Taskline's",
        ),
        ("kombu+librabbitmq://h", "write amqp://|kombu cannot open"),
        ("kombu+amqp://h?queue_type=stream", "choose classic or quorum"),
        ("kombu+amqp://h?priorities=many", "priorities='many': not a number"),
        ("kombu+amqp://h?priorities=999", "0 to 255"),
        ("kombu+amqp://h?timeout=0", "more than 0"),
        ("kombu+amqp://h?prefix=a%20b", "prefix='a b'"),
        ({"type": "kombu"}, "needs a 'url'"),
        ({"type": "kombu", "url": "amqp://h", "colour": "red"}, "no option 'colour'"),
        ({"type": "kombu", "url": "amqp://h", "timeout": []}, "timeout"),
    ],
)
def test_what_is_wrong_is_said(spec: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        open_transport(spec)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "extra"),
    [("redis://h", "redis"), ("rediss://h", "redis"), ("sqla+sqlite:///x", "sqlalchemy")],
)
def test_a_driver_that_is_missing(monkeypatch: pytest.MonkeyPatch, url: str, extra: str) -> None:
    def connection(*arguments: object, **options: object) -> object:
        raise ModuleNotFoundError("No module named 'packaging'")

    monkeypatch.setattr("kombu.connection.Connection", connection)
    said = f"No module named 'packaging'; install its driver: pip install 'kombu\\[{extra}\\]'"
    with pytest.raises(ConfigurationError, match=said):
        locate(f"kombu+{url}").connection()


def test_a_password_is_in_no_message() -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_transport("kombu+nosuch://ann:secret@host")
    assert "secret" not in str(caught.value)


def test_what_rabbitmq_can_do_is_known_without_a_connection() -> None:
    classic = KombuTransport.from_spec("kombu+amqp://localhost", SYSTEM_CLOCK)
    quorum = KombuTransport.from_spec("kombu+amqp://localhost?queue_type=quorum", SYSTEM_CLOCK)
    plain = KombuTransport.from_spec("kombu+amqp://localhost?priorities=0", SYSTEM_CLOCK)
    assert classic.capabilities.priority
    assert not quorum.capabilities.priority
    assert not plain.capabilities.priority
    for each in (classic, quorum, plain):
        assert each.capabilities.durable
        assert each.capabilities.blocking
        assert not each.capabilities.leases
        each.close()
