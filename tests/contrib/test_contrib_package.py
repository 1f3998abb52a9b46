"""What installing Taskline has to know of the contributed transports."""

from __future__ import annotations

import sys
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path

import pytest

from taskline.clock import SYSTEM_CLOCK
from taskline.errors import ConfigurationError
from taskline.transports.base import Transport
from taskline_contrib.disque import DisqueTransport
from taskline_contrib.django_q import DjangoQTransport
from taskline_contrib.rsmq import RSMQTransport
from taskline_contrib.volley import VolleyTransport

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def setup() -> ConfigParser:
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_each_transport_is_an_entry_point_with_an_extra(setup: ConfigParser) -> None:
    points = setup["options.entry_points"]["taskline.transports"].strip().splitlines()
    found = {}
    for point in points:
        scheme, _, path = point.partition(" = ")
        module, _, name = path.partition(":")
        found[scheme] = getattr(import_module(module), name)
    assert found == {
        "rsmq": RSMQTransport,
        "disque": DisqueTransport,
        "volley": VolleyTransport,
        "django_q": DjangoQTransport,
    }
    for scheme, transport in found.items():
        assert issubclass(transport, Transport)
        assert transport.scheme == scheme
    for scheme in ("rsmq", "disque"):
        assert "redis>=" in setup["options.extras_require"][scheme]


def test_the_script_is_packaged_data(setup: ConfigParser) -> None:
    assert setup["options.package_data"]["taskline_contrib.rsmq"] == "*.lua"
    assert (ROOT / "taskline_contrib/rsmq/script.lua").exists()


@pytest.mark.parametrize("transport", [RSMQTransport, DisqueTransport])
def test_without_the_driver_it_says_what_to_install(
    transport: type[Transport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigurationError, match=rf"pip install 'taskline\[{transport.scheme}\]'"):
        transport.from_spec(f"{transport.scheme}://localhost", SYSTEM_CLOCK)


@pytest.mark.parametrize(
    ("url", "about"),
    [
        ("rsmq://host?body=xml", "body='xml'"),
        ("rsmq://host?poll=0", "poll=0"),
        ("rsmq://host?vt=-1", "between 0 and 9999999"),
        ("rsmq://host?tls=maybe", "tls='maybe'"),
        ("rsmq://host?prefix=x", "no option 'prefix'"),
        ("rsmq://host:port", "the rsmq broker URL is wrong"),
    ],
)
def test_wrong_options_are_refused(url: str, about: str) -> None:
    pytest.importorskip("redis")
    with pytest.raises(ConfigurationError, match=about):
        RSMQTransport.from_spec(url, SYSTEM_CLOCK)
