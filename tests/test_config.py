from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from taskline.config import NAMES, Settings, load, read
from taskline.errors import ConfigurationError


def refused(
    arguments: dict[str, Any] | None = None,
    file: Any = None,
    environ: dict[str, str] | None = None,
) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(arguments or {}, file, environ or {})
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_are_the_structs_own() -> None:
    settings = load({}, None, {})
    assert settings == Settings()
    assert settings.broker == "sqlite:///taskline.db"
    assert settings.backend is None
    assert settings.accept == ["json", "msgpack"]
    assert settings.max_message_size == 16 * 1024 * 1024
    assert settings.signing_key is None


def test_lists_are_not_shared() -> None:
    load({}, None, {}).accept.append("pickle")
    assert load({}, None, {}).accept == ["json", "msgpack"]


@pytest.mark.parametrize("name", NAMES)
def test_every_default_is_a_value_that_would_be_accepted(name: str) -> None:
    default = getattr(Settings(), name)
    assert getattr(load({name: default}, None, {}), name) == default


def test_precedence_is_argument_environment_file_default() -> None:
    file = {"queue": "file", "lease": 1, "grace": 1, "priority": 1}
    environ = {"TASKLINE_QUEUE": "environment", "TASKLINE_LEASE": "2", "TASKLINE_GRACE": "2"}
    settings = load({"queue": "argument", "lease": 3}, file, environ)
    assert (settings.queue, settings.lease, settings.grace) == ("argument", 3.0, 2.0)
    assert (settings.priority, settings.max_deliveries) == (1, 5)


def test_an_argument_of_none_wins_over_the_file() -> None:
    assert load({"backend": None}, {"backend": "memory://"}, {}).backend is None


def test_environment_is_the_processs_own_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKLINE_QUEUE", "mail")
    assert load({}).queue == "mail"


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("ACCEPT", "json,pickle", ["json", "pickle"]),
        ("ACCEPT", " json , msgpack ,", ["json", "msgpack"]),
        ("ACCEPT", '["json"]', ["json"]),
        ("INCLUDE", "", []),
        ("LEASE", "30", 30.0),
        ("LEASE", " 0.5 ", 0.5),
        ("PREFETCH", "7", 7),
        ("EAGER", "true", True),
        ("EAGER", "1", True),
        ("EAGER", "false", False),
        ("ACCEPT_UNSIGNED", "0", False),
        ("TIMEOUT", "", None),
        ("TIMEOUT", "none", None),
        ("TIMEOUT", "2.5", 2.5),
        ("RETRY", "3", 3),
        ("RETRY", '{"max": 3}', {"max": 3}),
        ("BACKEND", "none", None),
        ("BACKEND", "memory://", "memory://"),
        ("BROKER", "redis://a, redis://b", ["redis://a", "redis://b"]),
        ("BROKER", "kafka://a,b", "kafka://a,b"),
        ("BROKER", '["redis://a"]', ["redis://a"]),
        ("BROKER", '{"type": "redis", "nodes": []}', {"type": "redis", "nodes": []}),
        ("SIGNING_KEY", "none", "none"),
        ("SIGNING_KEY", "12345", "12345"),
        ("VERIFY_KEYS", "1234,5678", ["1234", "5678"]),
        ("QUEUE", "1", "1"),
    ],
)
def test_environment(variable: str, text: str, expected: object) -> None:
    value = getattr(load({}, None, {f"TASKLINE_{variable}": text}), variable.lower())
    assert value == expected
    assert type(value) is type(expected)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    assert "arguments: unknown setting 'borker': did you mean 'broker'?" in refused({"borker": ""})
    assert "did you mean 'prefetch'?" in refused(file={"prefech": 1})
    message = refused(environ={"TASKLINE_BROKER_URL": "memory://"})
    assert "TASKLINE_BROKER_URL: did you mean TASKLINE_BROKER?" in message
    assert "known are accept, " in refused({"xyzzy": 1})


def test_other_programs_variables_are_left_alone() -> None:
    others = {"TASKLINE_SERVICE_HOST": "10.0.0.1", "TASKLINE_PORT": "x", "TASKLINE_APP": "proj"}
    assert load({}, None, {**others, "QUEUE": "no", "_TASKLINE_COMPLETE": "x"}) == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("queue", 1),
        ("accept", "json"),
        ("lease", 0),
        ("lease", "30"),
        ("lease", None),
        ("priority", 10),
        ("priority", True),
        ("max_deliveries", 0),
        ("prefetch", 1.5),
        ("eager", 1),
        ("retry", "3"),
        ("retry", -1),
        ("timeout", -1),
    ],
)
def test_wrong_types_name_the_setting_its_value_and_its_source(name: str, value: object) -> None:
    assert refused({name: value}).startswith(f"arguments: {name} = {value!r}: Expected ")
    assert refused(file={name: value}).startswith(f"configuration: {name} = ")


def test_wrong_text_in_the_environment() -> None:
    assert refused(environ={"TASKLINE_LEASE": "soon"}).startswith("TASKLINE_LEASE: lease = 'soon'")
    assert "TASKLINE_RETRY: retry is not JSON" in refused(environ={"TASKLINE_RETRY": "{3"})


def test_errors_never_show_keys_or_passwords() -> None:
    assert "hunter2" not in refused({"signing_key": ["hunter2"]})
    assert "hunter2" not in refused({"verify_keys": "hunter2"})
    assert "hunter2" not in refused({"broker": ["redis://:hunter2@localhost", 3]})


def test_an_empty_key_is_no_key() -> None:
    assert "signing_key is empty" in refused(environ={"TASKLINE_SIGNING_KEY": ""})
    assert "signing_key is empty" in refused({"signing_key": ""})
    assert "empty key" in refused({"verify_keys": ["a", ""]})


def test_yaml_and_toml(tmp_path: Path) -> None:
    yaml = tmp_path / "settings.yaml"
    yaml.write_text("broker:\n  type: redis\n  nodes: [{host: localhost}]\nlease: 10\n")
    toml = tmp_path / "settings.toml"
    toml.write_text('lease = 10\n[broker]\ntype = "redis"\nnodes = [{host = "localhost"}]\n')
    expected = Settings(broker={"type": "redis", "nodes": [{"host": "localhost"}]}, lease=10.0)
    assert load({}, yaml, {}) == load({}, str(toml), {}) == expected


def test_an_empty_yaml_file_is_no_settings(tmp_path: Path) -> None:
    path = tmp_path / "empty.yml"
    path.write_text("# nothing\n")
    assert read(path) == {}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("s.yaml", b"lease: [1", "not YAML: "),
        ("s.yaml", b"- 1\n", "a mapping of names to values, not list"),
        ("s.yaml", b"!!python/object/apply:os.getpid []", "not YAML: "),
        ("s.toml", b"lease = ", "not TOML: "),
        ("s.toml", b"\xff", "not UTF-8"),
        ("s.ini", b"", "read from .yaml, .yml or .toml"),
        ("s.toml", b"leese = 3", "unknown setting 'leese': did you mean 'lease'?"),
        ("s.toml", b"lease = 'x'", "lease = 'x': Expected `float"),
    ],
)
def test_errors_name_the_file(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = refused(file=path)
    assert message.startswith(f"{path}: ")
    assert expected in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "No such file" in refused(file=tmp_path / "none.toml")
