from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any

import pytest

from taskline.backends import open_backend
from taskline.backends.memory import MemoryBackend
from taskline.clock import ManualClock
from taskline.errors import ConfigurationError
from taskline.registry import Kind, Registry, hide_password, options_of
from taskline.transports import TRANSPORTS, open_transport
from taskline.transports.base import Transport
from taskline.transports.memory import MemoryTransport


class Spreading(MemoryTransport):
    """A transport that takes several nodes and says which it was given."""

    distributes = True

    @classmethod
    def from_spec(cls, spec: Any, clock: Any) -> Spreading:
        made = cls("", clock)
        made.given = spec
        return made


HERE = f"{__name__}:Spreading"


def refusal(spec: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        open_transport(spec)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_url_opens_the_class_of_its_scheme_with_the_clock() -> None:
    clock = ManualClock()
    transport = open_transport("memory://shop", clock=clock)
    backend = open_backend("memory://shop", clock=clock)
    assert isinstance(transport, MemoryTransport)
    assert isinstance(backend, MemoryBackend)
    assert transport.name == backend.name == "shop"
    assert transport.clock is backend.clock is clock


def test_each_call_opens_a_fresh_one() -> None:
    assert open_transport("memory://shop") is not open_transport("memory://shop")


def test_no_backend_is_none() -> None:
    assert open_backend(None) is None


@pytest.mark.parametrize(
    "spec",
    [
        ["memory://shop"],
        ("MEMORY://shop",),
        {"type": "memory", "name": "shop"},
        {"type": "memory", "params": {"name": "shop"}},
        {"type": "taskline.transports.memory:MemoryTransport", "params": {"name": "shop"}},
    ],
)
def test_one_node_may_be_written_as_a_list_or_a_mapping(spec: Any) -> None:
    transport = open_transport(spec)
    assert isinstance(transport, MemoryTransport)
    assert transport.name == "shop"


@pytest.mark.parametrize(
    ("type", "scheme"), [("local", "sqlite"), ("mongo", "mongodb"), ("Redis", "redis")]
)
def test_the_types_of_sergeant_are_known(type: str, scheme: str) -> None:
    known = {scheme: Kind(HERE)}
    registry: Registry[Transport] = Registry("broker", "no.such.group", Transport, known)
    assert registry.find({"type": type, "params": {}})[0].__name__ == "Spreading"


@pytest.mark.parametrize("scheme", ["memory", "sqlite"])
def test_several_nodes_are_refused_where_they_cannot_be_spread_over(scheme: str) -> None:
    if scheme == "sqlite":
        pytest.importorskip("taskline.transports.sqlite")
    nodes = [f"{scheme}:///a", f"{scheme}:///b"]
    assert refusal(nodes) == (
        f"{scheme} cannot spread over several nodes: give one broker URL, not a list"
    )
    assert "several nodes" in refusal({"type": scheme, "nodes": [{}, {}]})
    assert "several nodes" in refusal({"type": scheme, "params": {"nodes": [{}, {}]}})


def test_several_nodes_reach_a_class_that_spreads_over_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(TRANSPORTS.known, "wide", Kind(HERE))
    urls = ["wide://a", "wide://b"]
    assert open_transport(urls).given == urls  # type: ignore[attr-defined]
    mapping: Mapping[str, Any] = {"type": HERE, "nodes": [{"host": "a"}, {"host": "b"}]}
    assert open_transport(mapping).given == mapping  # type: ignore[attr-defined]


def test_an_unknown_scheme_names_the_nearest() -> None:
    assert "unknown broker 'sqlit': did you mean 'sqlite'?" in refusal("sqlit:///shop.db")
    assert "unknown broker 'carrierpigeon': there are: " in refusal("carrierpigeon://coop")
    assert "did you mean 'kombu+amqp://…'?" in refusal("amqp://guest@localhost//")


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("shop.db", "'shop.db' is not a URL"),
        ("", "'' is not a URL"),
        ([], "is empty"),
        (["memory://a", "sqlite:///b"], "one kind, not memory and sqlite"),
        ({}, "needs a 'type'"),
        ({"typ": "redis"}, "got the keys typ"),
        ({"type": 5}, "needs a 'type'"),
        (17, "not int"),
        ([17], "not list"),
        (None, "not NoneType"),
        ({"type": "memory", "file_path": "x"}, "memory has no option 'file_path'"),
        ("memory://x?durability=full", "memory has no option 'durability'"),
        ({"type": "taskline.nothing:Gone"}, "No module named 'taskline.nothing'"),
        ({"type": "taskline.transports.memory:Gone"}, "has no 'Gone'"),
        ({"type": "taskline.clock:Clock"}, "is not a taskline Transport"),
        ({"type": "taskline.backends.memory:MemoryBackend"}, "is not a taskline Transport"),
    ],
)
def test_bad_specs_are_refused_in_one_line(spec: Any, part: str) -> None:
    assert part in refusal(spec)


def test_a_backend_is_called_a_backend_in_messages() -> None:
    with pytest.raises(ConfigurationError, match="unknown backend 'memry': did you mean 'memory'"):
        open_backend("memry://")


def test_a_missing_driver_names_the_extra_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(TRANSPORTS.known, "rabbit", Kind("no_such_driver:Rabbit", "amqp"))
    assert refusal("rabbit://host").endswith("install it: pip install 'taskline[amqp]'")


def test_a_plug_in_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("carrier_pigeon")
    module.Pigeon = Spreading  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "carrier_pigeon", module)
    point = EntryPoint("pigeon", "carrier_pigeon:Pigeon", "taskline.transports")
    monkeypatch.setattr(
        "importlib.metadata.entry_points",
        lambda group: [point] if group == "taskline.transports" else [],
    )
    assert isinstance(open_transport("pigeon://coop"), Spreading)
    assert "mongodb+srv, pigeon, redis" in refusal("carrier://coop")
    with pytest.raises(ConfigurationError, match="unknown backend 'pigeon'"):
        open_backend("pigeon://coop")


def test_a_class_without_from_spec_says_how_it_is_opened() -> None:
    with pytest.raises(ConfigurationError, match="Transport is opened from Python"):
        Transport.from_spec("x://", ManualClock())


def test_options_come_from_the_query_of_a_url_and_are_converted() -> None:
    options = options_of("x:///a%20b?size=3&mode=", rest="path", size=int, mode=str)
    assert options == {"path": "/a%20b", "size": 3, "mode": ""}


def test_an_option_that_cannot_be_converted_is_named() -> None:
    with pytest.raises(ConfigurationError, match="x option size='big'"):
        options_of("x:///a?size=big", rest="path", size=int)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://ann:s3cr:et@host:1/0", "redis://ann:***@host:1/0"),
        ("redis://:p@ss@host", "redis://:***@host"),
        ("redis://ann@host", "redis://ann@host"),
        ("memory://", "memory://"),
        ("shop.db", "shop.db"),
    ],
)
def test_passwords_are_hidden(url: str, shown: str) -> None:
    assert hide_password(url) == shown


def test_no_password_is_shown_in_a_refusal() -> None:
    for spec in ("mongodb://ann:hush@host:port", "sqlit://ann:hush@host", "ann:hush@host"):
        assert "hush" not in refusal(spec)
