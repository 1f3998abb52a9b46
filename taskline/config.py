"""Settings: their names, types and defaults, and where their values come from."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from taskline.errors import ConfigurationError

ENVIRONMENT_PREFIX = "TASKLINE_"

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
NonNegative = Annotated[int, msgspec.Meta(ge=0)]


LogEvent = Literal["started", "succeeded", "retried", "failed", "revoked", "expired"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
LOG_LEVELS: dict[LogEvent, LogLevel] = {
    "started": "DEBUG",
    "succeeded": "DEBUG",
    "retried": "WARNING",
    "failed": "ERROR",
    "revoked": "INFO",
    "expired": "INFO",
}
"""Where the setting `log_levels` says nothing: at INFO, no line for a task that goes well."""


class Settings(msgspec.Struct, kw_only=True):
    """All settings of an app. Durations are seconds, sizes bytes."""

    broker: str | list[str] | dict[str, Any] = "sqlite:///taskline.db"
    """A URL, several (unclustered nodes), or a connector mapping."""
    backend: str | list[str] | dict[str, Any] | None = None
    """Where outcomes are kept, in the forms of `broker`; None keeps no results."""
    version: str = ""
    """Of your code, as `taskline inspect` shows it for each worker."""
    queue: str = "default"
    """The queue of tasks that name none."""
    protocol: Literal["taskline", "celery"] = "taskline"
    """What messages and outcomes look like; `celery` as Celery's clients and workers have them."""
    serializer: str = "json"
    """What bodies are written in."""
    accept: list[str] = msgspec.field(default_factory=lambda: ["json", "msgpack"])
    """The serializers that are read; all others are refused."""
    compression: str = ""
    """`zlib`, `gzip`, `bz2`, `lzma` or `zstd`; empty for none."""
    compress_above: NonNegative = 16 * 1024
    """Bodies larger than this are compressed."""
    max_message_size: Count = 16 * 1024 * 1024
    """The largest frame, and the largest decompressed body, that is sent or read."""
    signing_key: str | None = None
    """Signs every message and outcome, and verifies them."""
    verify_keys: list[str] = []
    """Further keys whose signatures are accepted, for rotation."""
    accept_unsigned: bool = False
    """Read unsigned messages although there is a key, and unsafe serializers without one."""
    result_ttl: Annotated[float, msgspec.Meta(ge=0)] = 86400.0
    idempotency_ttl: Positive = 86400.0
    """For how long an `idempotency_key` is known."""
    retry: Annotated[int, msgspec.Meta(ge=0)] | dict[str, Any] | None = None
    """The retry policy of tasks that have none; see `taskline.policy`."""
    timeout: Positive | None = None
    soft_timeout: Positive | None = None
    expires: Positive | None = None
    lease: Positive = 30.0
    max_deliveries: Count = 5
    """Handings-over that may end with their worker's death before a message is buried."""
    grace: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    """How long running tasks may go on after SIGTERM."""
    prefetch: Count | None = None
    """The most messages that one worker process holds unstarted; None: as the broker bears."""
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] = 5
    eager: bool = False
    """Run tasks inside `delay()`, here and now."""
    log_levels: dict[LogEvent, LogLevel] = {}
    """At which levels the logger `taskline.worker` has its line for an event of a task's life."""
    unknown_grace: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Seconds since it was due for which a task that a worker does not know is left to others."""
    include: list[str] = []
    """Modules that workers import."""
    queues: dict[str, dict[str, Any]] = {}
    """Queues that are elsewhere, called otherwise there, or carry a type of their own: by the
    name that the app has for each, what `taskline.queueing.QueueSettings` says."""
    connectors: dict[str, str | list[str] | dict[str, Any]] = {}
    """Further brokers by a name of your own, for `queues`, in the forms of `broker`."""
    profiles: dict[str, dict[str, Any]] = {}
    """What several of `queues` have in common, by a name of your own."""


NAMES = Settings.__struct_fields__
_TYPES = get_type_hints(Settings, include_extras=True)
_LISTS = frozenset(name for name in NAMES if _TYPES[name] == list[str])
_STRUCTURED = frozenset(
    {"broker", "backend", "retry", "queues", "connectors", "profiles", "log_levels"}
)
_CONFIDENTIAL = frozenset(
    {"broker", "backend", "signing_key", "verify_keys", "queues", "connectors", "profiles"}
)
"""Their values may hold passwords or keys, and never stand in an error."""


def load(
    arguments: Mapping[str, Any],
    file: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """The settings from arguments, over environment, over file, over defaults.

    `file` is a path (.yaml, .yml or .toml) or a mapping; `environ` defaults to
    `os.environ`. Raises `ConfigurationError` for an unknown name and for a
    value of the wrong type, naming the source and the setting.
    """
    values: dict[str, Any] = {}
    if file is not None:
        if isinstance(file, Mapping):
            source, found = "configuration", file
        else:
            source, found = os.fspath(file), read(file)
        for name, value in found.items():
            _known(name, source)
            values[name] = _typed(name, value, source)
    for variable, text in (os.environ if environ is None else environ).items():
        if variable.startswith(ENVIRONMENT_PREFIX):
            name = variable[len(ENVIRONMENT_PREFIX) :].lower()
            if name in NAMES:
                parsed = _parse(name, text, variable)
                values[name] = _typed(name, parsed, variable, strict=False)
            else:
                _refuse_misspelt(name)
    for name, value in arguments.items():
        _known(name, "arguments")
        values[name] = _typed(name, value, "arguments")
    return Settings(**values)


def read(file: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping in a YAML or TOML file, which its extension tells apart.

    Raises `ConfigurationError` naming the file, and the place of a syntax error in it.
    """
    path = os.fspath(file)
    kind = os.path.splitext(path)[1].lower()
    if kind not in (".yaml", ".yml", ".toml"):
        raise ConfigurationError(f"{path}: settings are read from .yaml, .yml or .toml files")
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read()
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8: {error}") from None
    found = _read_toml(path, text) if kind == ".toml" else _read_yaml(path, text)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigurationError(
            f"{path}: settings are a mapping of names to values, not {type(found).__name__}"
        )
    return found


def nearest(name: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    """`: did you mean 'x'?` for a misspelt name, or `: known are x, y` when nothing is near."""
    from difflib import get_close_matches

    if not known:
        return ": there are none"
    close = get_close_matches(name, list(known), n=1)
    return f": did you mean {close[0]!r}?" if close else f": known are {', '.join(sorted(known))}"


def _known(name: object, source: str) -> None:
    if name not in NAMES:
        raise ConfigurationError(f"{source}: unknown setting {name!r}{nearest(str(name), NAMES)}")


def _refuse_misspelt(name: str) -> None:
    # Other programs' variables share the prefix (Kubernetes sets TASKLINE_SERVICE_HOST for
    # a service named taskline), so only what looks like a setting is refused.
    from difflib import get_close_matches

    close = get_close_matches(name, NAMES, n=1, cutoff=0.7)
    if close:
        raise ConfigurationError(
            f"environment: unknown setting {_variable(name)}: did you mean {_variable(close[0])}?"
        )


def _variable(name: str) -> str:
    return ENVIRONMENT_PREFIX + name.upper()


def _typed(name: str, value: Any, source: str, *, strict: bool = True) -> Any:
    """The value as the setting's type; `strict=False` reads numbers and booleans from text."""
    if name == "signing_key" and value == "":
        raise ConfigurationError(f"{source}: signing_key is empty: give a key, or leave it out")
    if name == "verify_keys" and isinstance(value, (list, tuple)) and "" in value:
        raise ConfigurationError(f"{source}: verify_keys has an empty key: leave it out")
    try:
        return msgspec.convert(value, _TYPES[name], strict=strict)
    except msgspec.ValidationError as error:
        shown = "" if name in _CONFIDENTIAL else f" = {value!r}"
        raise ConfigurationError(f"{source}: {name}{shown}: {_told(name, value, error)}") from None


def _told(name: str, value: Any, error: msgspec.ValidationError) -> str:
    """What does not fit: with the choices where there are some, the entry of a mapping."""
    choices = [each for each in get_args(_TYPES[name]) if isinstance(each, str)]
    if choices and get_origin(_TYPES[name]) is Literal:
        return f"choose {' or '.join(choices)}"
    text = str(error)
    if name in ("queues", "connectors", "profiles") and isinstance(value, Mapping):
        for key, each in value.items():
            try:
                msgspec.convert({key: each}, _TYPES[name])
            except msgspec.ValidationError as its:
                return f"{key}: {str(its).removesuffix(' - at `$[...]`')}"
    return text


def _parse(name: str, text: str, variable: str) -> Any:
    """An environment variable's text as the plain value that it stands for."""
    text = text.strip()
    if name == "signing_key":
        return text
    if text.lower() in ("", "none", "null") and type(None) in get_args(_TYPES[name]):
        return None
    if text[:1] in ("{", "[") and (name in _STRUCTURED or name in _LISTS):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise ConfigurationError(f"{variable}: {name} is not JSON: {error}") from None
    if name in _LISTS:
        return [part.strip() for part in text.split(",") if part.strip()]
    if name in ("broker", "backend"):
        # A comma may also stand within one URL (kafka://host1,host2).
        parts = [part.strip() for part in text.split(",")]
        if len(parts) > 1 and all("://" in part for part in parts):
            return parts
    return text


def _read_yaml(path: str, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def _read_toml(path: str, text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: not TOML: {error}") from None
