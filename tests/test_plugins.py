"""Plug-ins as their users have them: distributions with entry points, or dotted paths."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskline import Taskline
from taskline.errors import ConfigurationError

Install = Callable[..., None]

PIGEONS = """
from taskline.backends.memory import MemoryBackend
from taskline.serializers import Serializer
from taskline.transports.memory import MemoryTransport


class PigeonTransport(MemoryTransport):
    scheme = "pigeon"


class LoftBackend(MemoryBackend):
    scheme = "loft"


COO = Serializer("coo", lambda value: repr(value).encode(), lambda body: eval(body), True)
NOT_ONE = 7
"""

ENTRY_POINTS = {
    "taskline.transports": "pigeon = pigeons:PigeonTransport",
    "taskline.backends": "loft = pigeons:LoftBackend",
    "taskline.serializers": "coo = pigeons:COO",
}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution onto the path, as pip leaves one: a module, its metadata."""
    site = tmp_path / "site-packages"
    monkeypatch.syspath_prepend(site)
    modules = set(sys.modules)

    def install(name: str, code: str, points: dict[str, str]) -> None:
        metadata = site / f"{name}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (site / f"{name}.py").write_text(code)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(
            "".join(f"[{group}]\n{line}\n" for group, line in points.items())
        )

    yield install
    for module in set(sys.modules) - modules:
        if "." not in module:
            del sys.modules[module]


def test_an_installed_distribution_brings_broker_backend_and_serializer(install: Install) -> None:
    install("pigeons", PIGEONS, ENTRY_POINTS)
    app = Taskline(
        "shop", broker="pigeon://coop", backend="loft://coop", accept=["coo"], serializer="coo"
    )
    with app:
        result = app.send_task("add", (1, 2))
        assert type(app.transport).__name__ == "PigeonTransport"
        assert type(app.backend).__name__ == "LoftBackend"
        (stored,) = app.transport.peek("default")
        assert stored.id == result.id
        assert stored.frame.endswith(b"\n((1, 2), {})")


@pytest.mark.parametrize("path", ["pigeons:PigeonTransport", "pigeons.PigeonTransport"])
def test_a_dotted_path_needs_no_distribution(install: Install, path: str) -> None:
    install("pigeons", PIGEONS, {})
    backend = path.replace("PigeonTransport", "LoftBackend")
    app = Taskline("shop", broker={"type": path, "name": "a"}, backend={"type": backend})
    with app:
        assert app.transport.info()["transport"] == "pigeon"
        assert type(app.backend).__name__ == "LoftBackend"


def test_a_dotted_path_names_a_serializer(install: Install) -> None:
    install("pigeons", PIGEONS, {})
    with Taskline(
        "a", broker="memory://paths", accept=["pigeons:COO"], serializer="pigeons:COO"
    ) as app:
        app.send_task("add", (1, 2))
        (stored,) = app.transport.peek("default")
        assert stored.frame.endswith(b"\n((1, 2), {})")
    for path, complaint in {
        "pigeons:MOO": "cannot be loaded: module 'pigeons' has no attribute 'MOO'",
        "ravens:COO": "cannot be loaded: No module named 'ravens'",
        "pigeons:NOT_ONE": "is no Serializer: int",
    }.items():
        with pytest.raises(ConfigurationError, match=complaint):
            Taskline("a", broker="memory://paths", accept=["json", path])


def test_a_file_may_name_them(install: Install, tmp_path: Path) -> None:
    install("pigeons", PIGEONS, ENTRY_POINTS)
    file = tmp_path / "taskline.yaml"
    file.write_text("name: shop\nbroker: {type: pigeons.PigeonTransport, name: coop}\n")
    with Taskline.from_config(file) as app:
        assert app.transport.info()["transport"] == "pigeon"


@pytest.mark.parametrize(
    ("type", "complaint"),
    [
        ("pigeons:Raven", "the pigeons:Raven broker cannot be loaded: pigeons has no 'Raven'"),
        ("pigeons.Raven", "the pigeons.Raven broker cannot be loaded: pigeons has no 'Raven'"),
        ("ravens:Raven", "the ravens:Raven broker cannot be loaded: No module named 'ravens'"),
        ("pigeons:NOT_ONE", "the pigeons:NOT_ONE broker at pigeons:NOT_ONE is not a taskline"),
        ("pigeons:LoftBackend", "is not a taskline Transport"),
        (".x", "the .x broker cannot be loaded: Empty module name"),
    ],
)
def test_a_wrong_path_is_told_in_one_line(install: Install, type: str, complaint: str) -> None:
    install("pigeons", PIGEONS, {})
    with pytest.raises(ConfigurationError) as refused:
        Taskline("shop", broker={"type": type}).transport.ping()
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_plug_in_that_fails_when_it_is_imported_says_how(install: Install) -> None:
    install("pigeons", "1 / 0", ENTRY_POINTS)
    with pytest.raises(
        ConfigurationError, match="importing pigeons failed: ZeroDivisionError"
    ) as refused:
        Taskline("shop", broker="pigeon://").transport.ping()
    assert isinstance(refused.value.__cause__, ZeroDivisionError)


def test_a_plug_in_whose_driver_is_missing_says_which(install: Install) -> None:
    install("pigeons", "import no_such_driver", ENTRY_POINTS)
    with pytest.raises(
        ConfigurationError, match=r"pigeon broker .*No module named 'no_such_driver'"
    ):
        Taskline("shop", broker="pigeon://").transport.ping()


def test_two_plug_ins_of_one_name_are_refused(install: Install) -> None:
    install("pigeons", PIGEONS, ENTRY_POINTS)
    install("doves", PIGEONS, {"taskline.transports": "pigeon = doves:PigeonTransport"})
    with pytest.raises(
        ConfigurationError,
        match=r"several plug-ins .*'pigeon': doves:PigeonTransport and pigeons:PigeonTransport",
    ):
        Taskline("shop", broker="pigeon://").transport.ping()
    Taskline("shop", broker={"type": "doves:PigeonTransport"}).transport.ping()


def test_an_unknown_scheme_names_what_is_installed(install: Install) -> None:
    install("pigeons", PIGEONS, ENTRY_POINTS)
    with pytest.raises(ConfigurationError, match="unknown broker 'pigoen': did you mean 'pigeon'"):
        Taskline("shop", broker="pigoen://").transport.ping()


def test_a_plug_in_cannot_take_the_place_of_a_built_in(install: Install) -> None:
    install("pigeons", PIGEONS, {"taskline.transports": "memory = pigeons:PigeonTransport"})
    assert type(Taskline("shop", broker="memory://").transport).__name__ == "MemoryTransport"
