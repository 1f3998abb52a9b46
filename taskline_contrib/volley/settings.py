"""Volley's queue configuration as settings of Taskline.

It is what Volley's `Engine` takes as `queue_config` or `yaml_config_path`: a list of
queues, a mapping of them by name, or either under `queues:`. Its messages are plain JSON,
so that programs on either side may be Volley's still.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from taskline.config import nearest
from taskline.errors import ConfigurationError

KAFKA, RSMQ = "confluent", "rsmq"
"""The connectors, named as Volley's profiles for them."""
PROFILES: dict[str, dict[str, Any]] = {
    KAFKA: {"broker": KAFKA, "plain": True},
    f"{KAFKA}-dlq": {"broker": KAFKA},
    RSMQ: {"broker": RSMQ, "plain": True},
    f"{RSMQ}-dlq": {"broker": RSMQ},
}
_SAME = {f"{name}-{how}": name for name in (KAFKA, RSMQ) for how in ("pydantic", "orjson-pydantic")}
_OPTIONS = (
    "name", "value", "profile", "data_model", "model_handler", "serializer",
    "consumer", "producer", "config", "host",
)  # fmt: skip
_NONE = ("none", "disabled")
"""What Volley reads as nothing, in any case."""
_ANY_MODEL = "volley.data_models.GenericMessage"


def settings_of(
    source: str | os.PathLike[str] | Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    dead_letter_queue: str | None = None,
) -> dict[str, Any]:
    """`connectors`, `profiles` and `queues`, for `Taskline.from_config`.

    `source` is the YAML file, or what stands in it. Messages of a queue are run by the task
    that has the queue's name. `dead_letter_queue` is that of Volley's `Engine`: the dead
    letters of the queues at the same broker are kept under its name.
    Raises `ConfigurationError` for what Taskline has no counterpart of.
    """
    found = _queues(_read(source) if isinstance(source, (str, os.PathLike)) else source)
    connectors: dict[str, Any] = {}
    queues = {name: _queue(name, entry, connectors) for name, entry in found.items()}
    grave = queues.get(dead_letter_queue or "")
    if dead_letter_queue and grave is None:
        raise ConfigurationError(
            f"dead_letter_queue={dead_letter_queue!r} is none of the queues"
            f"{nearest(dead_letter_queue, queues)}"
        )
    for name, queue in queues.items():
        if grave is not None and name != dead_letter_queue and _place(queue) == _place(grave):
            queue["dead_letters"] = dead_letter_queue
    used = {queue["profile"] for queue in queues.values() if "profile" in queue}
    return {
        "connectors": connectors,
        "profiles": {name: dict(PROFILES[name]) for name in PROFILES if name in used},
        "queues": queues,
    }


def _read(path: str | os.PathLike[str]) -> Any:
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            return yaml.safe_load(file)
    except (OSError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())
        raise ConfigurationError(f"{os.fspath(path)} cannot be read: {told}") from None


def _queues(found: Any) -> dict[str, dict[str, Any]]:
    """The entries by name."""
    if isinstance(found, Mapping) and "queues" in found:
        found = found["queues"]
    if isinstance(found, Mapping):
        found = [{"name": name, **(entry or {})} for name, entry in found.items()]
    if not isinstance(found, Sequence) or isinstance(found, str) or not found:
        raise ConfigurationError(
            "no queues: Volley's configuration is a list of them, or a mapping"
        )
    queues = {}
    for number, entry in enumerate(found, 1):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            raise ConfigurationError(f"queue {number} has no name")
        # Volley's own documentation writes it in both ways.
        known: dict[str, Any] = {
            "model_handler" if key == "model_hander" else str(key): each
            for key, each in entry.items()
        }
        for key in known:
            if key not in _OPTIONS:
                raise ConfigurationError(
                    f"queue {entry['name']}: Volley has no option {key!r}"
                    f"{nearest(str(key), _OPTIONS)}"
                )
        queues[entry["name"]] = known
    return queues


def _queue(name: str, entry: dict[str, Any], connectors: dict[str, Any]) -> dict[str, Any]:
    """An entry of Taskline's `queues`; its connector is added to those."""
    serializer, profile = str(entry.get("serializer", "")), str(entry.get("profile") or "")
    if "msgpack" in f"{serializer} {profile}".lower():
        raise ConfigurationError(
            f"queue {name}: msgpack: Taskline reads and writes plain messages as JSON only"
        )
    kind = _kind(name, entry, _SAME.get(profile, profile))
    made: dict[str, Any] = {"name": entry.get("value") or name}
    options = {"host": entry.get("host"), **(entry.get("config") or {})}
    options = {key: value for key, value in options.items() if value is not None}
    if kind in PROFILES:
        made = {"profile": kind, **made}
        broker = PROFILES[kind]["broker"]
        if options:
            made["broker"] = broker = name
        connectors[broker] = _connector(kind, options)
    else:
        made = {**made, "broker": name, "plain": True}
        connectors[name] = {
            "type": "volley",
            "consumer": entry["consumer"],
            "producer": entry["producer"],
            **({"host": options.pop("host")} if "host" in options else {}),
            **({"config": options} if options else {}),
        }
    if not kind.endswith("-dlq"):
        made["task"] = name
    model = entry.get("data_model")
    if model is not None and model != _ANY_MODEL and str(model).lower() not in _NONE:
        made["model"] = model
    return made


def _kind(name: str, entry: dict[str, Any], profile: str) -> str:
    """One of `PROFILES`; empty for connectors of the user's own."""
    both = [entry.get("consumer"), entry.get("producer")]
    for kind, package in ((KAFKA, "volley.connectors.confluent"), (RSMQ, "volley.connectors.rsmq")):
        if any(str(each).startswith(package) for each in both):
            return kind
    if all(both):
        return ""
    if any(both):
        raise ConfigurationError(f"queue {name}: give both its consumer and its producer")
    if profile not in PROFILES:
        known = (*PROFILES, *_SAME)
        raise ConfigurationError(
            f"queue {name}: unknown profile {profile!r}{nearest(profile, known)}"
            if profile
            else f"queue {name}: has neither a profile nor a consumer and a producer"
        )
    return profile


def _connector(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """The connector of Kafka or RSMQ with these options of Volley's."""
    if kind.startswith(KAFKA):
        config = {key: value for key, value in options.items() if key != "host"}
        if "host" in options:
            config.setdefault("bootstrap.servers", options["host"])
        group = config.pop("group.id", None)
        named = {"group": group} if group else {}
        return {"type": "kafka", "prefix": "", **named, **({"config": config} if config else {})}
    for key in options:
        if key not in ("host", "vt"):
            raise ConfigurationError(f"config of an RSMQ queue: {key!r} has no counterpart; vt has")
    address = options.get("host") or os.environ.get("REDIS_HOST") or "localhost"
    return {"type": "rsmq", "address": address, **{k: options[k] for k in options if k == "vt"}}


def _place(queue: dict[str, Any]) -> str:
    """The key of the queue's connector."""
    return str(queue.get("broker") or PROFILES[queue["profile"]]["broker"])
