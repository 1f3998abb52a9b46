"""Where Kafka is, how to log in, and how queues are laid out there: URLs, mappings, environment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

from taskline.errors import ConfigurationError
from taskline.message import DEFAULT_PRIORITY
from taskline.registry import Spec, hide_password

PORT = 9092
TIMEOUT = 10.0
PREFIX = "taskline."
GROUP = "taskline"
PARTITIONS = 8
WINDOW = 10_000
DRAIN = 5.0
LEVELS = 10
"""Priorities that a message may have: 0 to 9."""
LONGEST_NAME = 249
"""Of a topic, in characters: Kafka's limit."""

UNORDERED, BY_KEY, BY_PARTITION = "none", "key", "partition"
AUTO, NEVER = "auto", "never"

_LEGAL = re.compile(r"[a-zA-Z0-9._-]+\Z")
_LEVEL = re.compile(r"(.*)\.priority-(\d)\Z", re.DOTALL)
_OWN = {
    "group.id": "say group=…",
    "group.instance.id": "it names one worker process",
    "group.protocol": "members are static ones of the classic protocol",
    "partition.assignment.strategy": "it is cooperative-sticky",
    "transactional.id": "it names one worker process",
    "isolation.level": "it is read_committed",
    "enable.auto.commit": "receipts are committed one by one",
    "enable.auto.offset.store": "receipts are committed one by one",
    "enable.partition.eof": "it is on",
    "statistics.interval.ms": "it is off",
}
"""librdkafka's settings that are not the user's to choose, and why."""


class Location(NamedTuple):
    """Everything that a URL, a mapping and the environment say."""

    brokers: str
    """host:port,… for all that is not said otherwise."""
    producer: dict[str, Any]
    """librdkafka's settings of producers; those of all clients are among them."""
    consumer: dict[str, Any]
    group: str = GROUP
    prefix: str = PREFIX
    """Begins the names of all topics."""
    partitions: int = PARTITIONS
    replication: int = -1
    """Copies of each partition that is created; -1 takes the broker's default."""
    retention: float = -1.0
    """Seconds for which the broker keeps a message; -1 keeps it until its task is done."""
    create_topics: str = AUTO
    ordering: str = UNORDERED
    window: int = WINDOW
    """Messages of a partition beyond the first unfinished one that may be finished."""
    drain: float = DRAIN
    """Seconds that the running tasks of a partition have when it goes to another worker."""
    timeout: float = TIMEOUT
    """Seconds for an answer."""
    priorities: int = 1
    """Levels of priority, each of which has a topic of its own."""

    def __str__(self) -> str:
        return f"kafka://{self.brokers}"

    def of_producers(self) -> Location:
        """The same as seen from where messages are sent to, which may be another cluster."""
        brokers = str(self.producer["bootstrap.servers"])
        return self._replace(brokers=brokers, consumer=self.producer)

    def topic(self, queue: str, level: int | None = None) -> str:
        """The topic of a queue and a level of priority, by default that of the usual one.

        Raises `ConfigurationError` for a name that no topic can have.
        """
        name = f"{self.prefix}{queue}"
        longest = LONGEST_NAME - (len(".priority-0") if self.priorities > 1 else 0)
        if (
            queue.startswith("_")
            or not _LEGAL.match(name)
            or name in (".", "..")
            or len(name) > longest
        ):
            raise ConfigurationError(
                f"queue {queue[:100]!r} cannot be a Kafka topic: use letters, digits, '.', '_' and "
                f"'-', not '_' first, {longest - len(self.prefix)} at most"
            )
        if self.priorities > 1 and _LEVEL.match(queue):
            raise ConfigurationError(
                f"queue {queue!r} ends as the topics of priorities do: give it another name"
            )
        if level is None or level == self.level(DEFAULT_PRIORITY):
            return name
        return f"{name}.priority-{level}"

    def topics(self, queue: str) -> list[str]:
        """Those of all levels."""
        return [self.topic(queue, level) for level in range(self.priorities)]

    def level(self, priority: int) -> int:
        """The level of a priority; the higher goes first."""
        return priority * self.priorities // LEVELS

    def level_of(self, topic: str) -> int:
        """The level that a topic holds."""
        found = _LEVEL.match(topic) if self.priorities > 1 else None
        return self.level(DEFAULT_PRIORITY) if found is None else int(found[2])

    def pattern(self, queue: str) -> str | None:
        """The regular expression of topics for a queue that is one (`^…`), else None."""
        if not queue.startswith("^"):
            return None
        try:
            re.compile(queue)
        except re.error as error:
            raise ConfigurationError(f"queue {queue!r} is no regular expression: {error}") from None
        # Not what begins with '_': those topics are ours, not queues.
        return f"^{re.escape(self.prefix)}[^_].*"

    def queue(self, topic: str) -> str:
        """The queue of a topic."""
        found = _LEVEL.match(topic) if self.priorities > 1 else None
        return (topic if found is None else found[1])[len(self.prefix) :]

    def subscription(self, queues: Iterable[str]) -> set[str]:
        """The topics of these queues, and the patterns of topics."""
        wanted = set[str]()
        for queue in queues:
            pattern = self.pattern(queue)
            wanted.update(self.topics(queue) if pattern is None else [pattern])
        return wanted

    @property
    def dead_topic(self) -> str:
        return f"{self.prefix}_dead_letters"

    @property
    def delay_topic(self) -> str:
        return f"{self.prefix}_delayed"


def locate(spec: Spec) -> Location:
    """What a `kafka://` URL or a mapping of type kafka says, completed from the environment.

    `kafka://[user:password@]host[:port][,host…][?option=value&librdkafka.setting=value]`; the
    environment: KAFKA_BROKERS, KAFKA_PRODUCER_BROKERS, KAFKA_CONSUMER_BROKERS, KAFKA_KEY,
    KAFKA_SECRET, KAFKA_CONSUMER_GROUP. Raises `ConfigurationError`.
    """
    if isinstance(spec, str):
        values, about = _from_url(spec), hide_password(spec)
    elif isinstance(spec, Mapping):
        values, about = _from_mapping(spec), "the kafka mapping"
    else:
        raise ConfigurationError("kafka takes one URL with all brokers: kafka://host1,host2")
    return _location(values, about)


def _from_url(url: str) -> dict[str, Any]:
    _, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    if path:
        raise ConfigurationError(
            f"{hide_password(url)!r} has a path: name the group with ?group=… and the topics' "
            "prefix with ?prefix=…"
        )
    credentials, at, hosts = authority.rpartition("@")
    values: dict[str, Any] = dict(parse_qsl(query, keep_blank_values=True))
    values["brokers"] = hosts
    if at:
        user, _, secret = credentials.partition(":")
        values["username"], values["password"] = unquote(user), unquote(secret)
    return values


def _from_mapping(spec: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in spec.items() if key not in ("type", "params")}
    values.update(spec.get("params") or {})
    brokers = values.pop("brokers", values.pop("hosts", ""))
    each = [brokers] if isinstance(brokers, str) else brokers
    if not isinstance(each, list | tuple) or not all(isinstance(one, str) for one in each):
        raise ConfigurationError(
            f"the kafka mapping: brokers={brokers!r}: give host:port, or a list of these"
        )
    values["brokers"] = ",".join(each)
    return values


def _location(values: dict[str, Any], about: str) -> Location:
    env = os.environ
    common = {"client.id": "taskline", **_pop_settings(values, "config", about)}
    common.update({name: values.pop(name) for name in [*values] if "." in name})
    brokers = values.pop("brokers", "") or common.pop("bootstrap.servers", "")
    everywhere = env.get("KAFKA_BROKERS", "")
    of_producers = env.get("KAFKA_PRODUCER_BROKERS") or everywhere
    of_consumers = env.get("KAFKA_CONSUMER_BROKERS") or everywhere
    brokers_of = {
        "producer": brokers or of_producers or of_consumers,
        "consumer": brokers or of_consumers or of_producers,
    }
    for name in ("username", "password", "group", "prefix"):
        if not isinstance(values.get(name, ""), str):
            raise ConfigurationError(f"{about}: {name} must be a text, in quotation marks")
    username = values.pop("username", None) or env.get("KAFKA_KEY")
    if username and "sasl.username" not in common:
        secret = values.pop("password", None) or env.get("KAFKA_SECRET")
        if not secret and "sasl.password" not in common:
            raise ConfigurationError(
                f"{about}: user {username!r} has no password: say password=… or set KAFKA_SECRET"
            )
        common = {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "PLAIN",
            "sasl.password": secret,
            **common,
            "sasl.username": username,
        }
        if "sasl.mechanisms" in common:  # the same setting by its other name
            del common["sasl.mechanism"]
    settings: dict[str, dict[str, Any]] = {}
    for side, addresses in brokers_of.items():
        own = {**common, **_pop_settings(values, side, about)}
        settings[side] = {**own, "bootstrap.servers": own.get("bootstrap.servers") or addresses}
        for name, why in _OWN.items():
            if name in own:
                raise ConfigurationError(f"{about}: {name} is not yours to set: {why}")
        for name in ("acks", "request.required.acks"):
            if side == "producer" and str(own.get(name)) == "0":
                raise ConfigurationError(
                    f"{about}: {name}=0 would lose messages: leave it, and the broker acknowledges"
                )
        idempotent = str(own.get("enable.idempotence", True)).lower()
        if side == "producer" and idempotent not in ("true", "1", "t"):
            raise ConfigurationError(
                f"{about}: enable.idempotence={idempotent} would double messages, and there are no "
                "transactions without it: leave it"
            )
        if not settings[side]["bootstrap.servers"]:
            raise ConfigurationError(
                f"{about} names no broker: write kafka://host1,host2, or brokers=[…] in a mapping, "
                "or set KAFKA_BROKERS"
            )
        _check_ports(str(settings[side]["bootstrap.servers"]))
    found = Location(
        brokers=settings["consumer"]["bootstrap.servers"],
        producer=settings["producer"],
        consumer=settings["consumer"],
        group=values.pop("group", "") or env.get("KAFKA_CONSUMER_GROUP") or GROUP,
        prefix=values.pop("prefix", PREFIX),
        partitions=_number(values, "partitions", PARTITIONS, int, about, 1),
        replication=_number(values, "replication", -1, int, about, -1),
        retention=_number(values, "retention", -1.0, float, about, -1.0),
        create_topics=_choice(values, "create_topics", (AUTO, NEVER), about),
        ordering=_choice(values, "ordering", (UNORDERED, BY_KEY, BY_PARTITION), about),
        window=_number(values, "window", WINDOW, int, about, 1),
        drain=_number(values, "drain", DRAIN, float, about, 0.0),
        timeout=_number(values, "timeout", TIMEOUT, float, about, 0.001),
        priorities=_number(values, "priorities", 1, int, about, 1),
    )
    if values:
        options = (
            "group, prefix, partitions, replication, retention, create_topics, ordering, window, "
            "drain, timeout, priorities, and librdkafka's settings, which have a '.'"
        )
        raise ConfigurationError(f"{about}: no option {min(values)!r}; there are: {options}")
    if found.priorities > LEVELS:
        raise ConfigurationError(f"{about}: priorities={found.priorities}, {LEVELS} at most")
    if found.prefix and not _LEGAL.match(found.prefix):
        raise ConfigurationError(
            f"{about}: prefix={found.prefix!r} cannot begin a topic's name: "
            "use letters, digits, '.', '_' and '-'"
        )
    return found


def _check_ports(brokers: str) -> None:
    """librdkafka would take any text after the colon for some other port."""
    for broker in brokers.split(","):
        address = broker.rpartition("://")[2].strip()
        _, colon, port = address.rpartition("]" if address.endswith("]") else ":")
        if colon == ":" and not (port.isdecimal() and 1 <= int(port) <= 65535):
            raise ConfigurationError(
                f"broker {address!r} of Kafka has no port: write host or host:{PORT}"
            )


def _pop_settings(values: dict[str, Any], name: str, about: str) -> dict[str, Any]:
    settings = values.pop(name, None) or {}
    if not isinstance(settings, Mapping):
        raise ConfigurationError(f"{about}: {name} is a mapping of librdkafka's settings")
    return dict(settings)


def _choice(values: dict[str, Any], name: str, choices: tuple[str, ...], about: str) -> str:
    value = values.pop(name, choices[0])
    if value not in choices:
        raise ConfigurationError(f"{about}: {name}={value!r}, use {' or '.join(choices)}")
    return str(value)


def _number(
    values: dict[str, Any], name: str, default: Any, kind: type, about: str, least: float
) -> Any:
    value = values.pop(name, None)
    if value is None:
        return default
    try:
        number = kind(value)
    except (TypeError, ValueError):
        number = None
    if isinstance(value, bool) or (isinstance(value, float) and number != value):
        number = None
    if number is None or not least <= number < float("inf"):
        what = "a whole number" if kind is int else "a number"
        wanted = f"{what} above 0" if 0 < least < 1 else f"{what} of {least:g} or more"
        raise ConfigurationError(f"{about}: {name}={value!r}: give {wanted}")
    return number
