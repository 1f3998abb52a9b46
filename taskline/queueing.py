"""The settings `queues`, `profiles` and `connectors`: which queue is where, and what it carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from taskline.config import nearest
from taskline.errors import ConfigurationError, InvalidArguments
from taskline.limits import Limits, limits

if TYPE_CHECKING:
    from taskline.config import Settings
    from taskline.conversion import Conversion
    from taskline.registry import Spec

LANES = 16
"""How many lanes a queue has that is shared fairly."""
MOST_LANES = 256

PROTOCOLS = ("taskline", "celery")

HOME = ""
"""The key of the connector that the setting `broker` names."""


class QueueSettings(msgspec.Struct, kw_only=True):
    """One entry of the setting `queues`, or of `profiles`; all of it may be left out."""

    profile: str | None = None
    """The entry of `profiles` that has what is not set here."""
    broker: Any = None
    """Where the queue is: one of `connectors`, or a URL or mapping as for the setting `broker`."""
    name: str | None = None
    """What the queue is called there; by default as here."""
    serializer: str | None = None
    """What messages to it are written in, unless a call says otherwise."""
    model: Any = None
    """The type of the one argument that its tasks take, or the dotted path of the type."""
    task: str | None = None
    """The task that runs plain messages, those of other programs, with their payload."""
    plain: bool | None = None
    """Write messages to it as other programs do: the one argument as JSON, and nothing else."""
    dead_letters: str | None = None
    """The queue under whose name its dead letters are kept; by default its own."""
    fair: str | None = None
    """The header, such as `tenant`, between whose values it is shared fairly."""
    lanes: int | None = None
    """In how many lanes, with `fair`: 16, unless it says otherwise."""
    protocol: Literal["taskline", "celery"] | None = None
    """What its messages and their outcomes look like; by default as the setting `protocol` says."""
    rate: str | list[str] | None = None
    """How many of its messages may begin in a time: `50/s`. See `taskline.limits`."""
    concurrency: int | None = None
    """How many of its messages may run at a time, in all workers."""


class Route(msgspec.Struct, frozen=True):
    """One queue of `queues`, with its profile applied."""

    connector: str
    name: str
    serializer: str | None
    task: str | None
    dead_letters: str
    plain: bool = False
    protocol: str = "taskline"
    fair: str = ""
    lanes: int = LANES


def lane_names(queue: str, count: int) -> tuple[str, ...]:
    """What the lanes of a queue are called at its broker; the queue itself is the first."""
    return (queue, *(f"{queue}-lane-{number}" for number in range(1, count + 1)))


class Queues:
    """What the three settings say, checked; all queues that they do not name are the broker's."""

    def __init__(self, settings: Settings) -> None:
        self.connectors: dict[str, Spec] = {HOME: settings.broker}
        self.routes: dict[str, Route] = {}
        self.limits: dict[str, Limits] = {}
        """Of the queues that have some."""
        self._models: dict[str, Model] = {}
        self._protocol = settings.protocol
        if not (settings.queues or settings.connectors or settings.profiles):
            return
        self.connectors.update(settings.connectors)
        profiles = {
            name: _entry("profiles", name, each) for name, each in settings.profiles.items()
        }
        for name, each in settings.queues.items():
            found = _entry("queues", name, each)
            if found.profile is not None:
                if found.profile not in profiles:
                    raise ConfigurationError(
                        f"queues: {name}: unknown profile {found.profile!r}"
                        f"{nearest(found.profile, profiles)}"
                    )
                found = _over(found, profiles[found.profile])
            self._add(settings, name, found)
        self._check()

    def _add(self, settings: Settings, name: str, found: QueueSettings) -> None:
        if found.serializer is not None and found.serializer not in settings.accept:
            raise ConfigurationError(
                f"queues: {name}: serializer={found.serializer!r}: accept has only "
                f"{', '.join(settings.accept)}: add it"
            )
        if found.plain and (found.serializer not in (None, "json") or settings.compression):
            raise ConfigurationError(
                f"queues: {name}: plain messages are JSON: leave out its serializer and compression"
            )
        if found.plain and (found.protocol or settings.protocol) != "taskline":
            raise ConfigurationError(
                f"queues: {name}: plain messages have no protocol: leave out one of the two"
            )
        if found.plain:
            found.serializer = "json"
        if not name or any(map(str.isspace, name)):
            raise ConfigurationError(f"queues: {name!r}: a queue's name has no blanks")
        _check_lanes(name, found, found.protocol or settings.protocol)
        self.routes[name] = Route(
            self._connector(name, found.broker),
            found.name or name,
            found.serializer,
            found.task,
            found.dead_letters or name,
            bool(found.plain),
            found.protocol or settings.protocol,
            found.fair or "",
            LANES if found.lanes is None else found.lanes,
        )
        try:
            own = limits(found.rate, found.concurrency, None)
        except ConfigurationError as error:
            raise ConfigurationError(f"queues: {name}: {error}") from None
        if own is not None:
            self.limits[name] = own
        if found.model is not None:
            self._models[name] = Model(name, found.model)

    def _connector(self, queue: str, broker: Any) -> str:
        """The key of the connector for what a queue names as its broker."""
        if broker is None:
            return HOME
        if isinstance(broker, str) and "://" not in broker:
            if broker not in self.connectors:
                named = {key: spec for key, spec in self.connectors.items() if key != HOME}
                raise ConfigurationError(
                    f"queues: {queue}: broker={broker!r} is neither a URL nor one of connectors"
                    f"{nearest(broker, named)}"
                )
            return broker
        for key, spec in self.connectors.items():
            if spec == broker:
                return key
        self.connectors[queue] = broker
        return queue

    def _check(self) -> None:
        places: dict[tuple[str, str], str] = {}
        for queue, route in self.routes.items():
            for name in lane_names(route.name, route.lanes if route.fair else 0):
                other = places.setdefault((route.connector, name), queue)
                if other != queue:
                    raise ConfigurationError(
                        f"queues: {other} and {queue} are the same queue {name!r} of one broker"
                    )
            grave = self.routes.get(route.dead_letters)
            beside = (grave.connector if grave else HOME) == route.connector
            if not beside and route.dead_letters != queue:
                raise ConfigurationError(
                    f"queues: {queue}: dead_letters={route.dead_letters!r} is at another broker: "
                    "a message is buried where it is; name a queue of the same broker"
                )

    @property
    def routed(self) -> bool:
        """Whether the broker alone does not do: a queue is elsewhere, or called otherwise."""
        return any(
            route.connector != HOME
            or route.name != queue
            or route.dead_letters != queue
            or route.task is not None
            or route.plain
            or route.fair
            for queue, route in self.routes.items()
        )

    def spec(self, queue: str) -> Spec:
        """The broker of the queue, as it was given."""
        route = self.routes.get(queue)
        return self.connectors[HOME if route is None else route.connector]

    def protocol(self, queue: str) -> str:
        """What the queue's messages and their outcomes look like."""
        route = self.routes.get(queue)
        return self._protocol if route is None else route.protocol

    @property
    def speaks_celery(self) -> bool:
        """Whether any queue has Celery's messages."""
        return "celery" in {self._protocol, *(each.protocol for each in self.routes.values())}

    def of_celery(self, connector: str) -> list[str] | None:
        """The queues of a connector, as it calls them, that have Celery's messages; None for all.

        Those that are not named in `queues` are the broker's.
        """
        if connector == HOME and self._protocol == "celery":
            return None
        return [
            route.name
            for route in self.routes.values()
            if route.connector == connector and route.protocol == "celery"
        ]

    def place(self, queue: str) -> str:
        """Where the queue is, for people: the connector, and its name there."""
        route = self.routes.get(queue)
        if route is None:
            return f"broker: {queue}"
        return f"{route.connector or 'broker'}: {route.name}"

    def origin(self, grave: str, queue: str) -> str:
        """The queue of a dead letter that is kept under the name `grave`.

        `queue` is what its sender calls it: another app perhaps, with names of its own.
        """
        if not self.routed:
            return queue
        from_here = [name for name, route in self.routes.items() if route.dead_letters == grave]
        if queue in from_here or not from_here:
            return queue if queue in from_here else grave
        return from_here[0]

    def serializer(self, queue: str) -> str | None:
        """What messages to the queue are written in, if it says so."""
        route = self.routes.get(queue)
        return None if route is None else route.serializer

    def model(self, queue: str) -> Model | None:
        """The model of the queue's payloads, if it has one."""
        return self._models.get(queue)

    @property
    def models(self) -> Mapping[str, Model]:
        """The models by queue."""
        return self._models


class Model:
    """The type of the one argument that the tasks of a queue take."""

    def __init__(self, queue: str, named: Any) -> None:
        self._queue = queue
        self._named = named
        self._conversion: Conversion | None = None

    def check(self, task: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise `InvalidArguments` for a call that the queue does not carry."""
        self._apply(task, args, kwargs, lambda found, value: found.check(value))

    def convert(self, task: str, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any]:
        """The payload off the wire as the model; raises `InvalidArguments`."""
        return (self._apply(task, args, kwargs, lambda found, value: found.convert(value)),)

    def _apply(
        self,
        task: str,
        args: Any,
        kwargs: Mapping[str, Any],
        use: Callable[[Conversion, Any], Any],
    ) -> Any:
        if len(args) != 1 or kwargs:
            raise InvalidArguments(
                f"{task}: the queue {self._queue} carries one {self._name} and nothing else"
            )
        try:
            return use(self._found(), args[0])
        except ConfigurationError:
            raise
        except Exception as error:
            raise InvalidArguments(
                f"{task}: the queue {self._queue} carries {self._name}: "
                f"{' '.join(str(error).split())[:300] or type(error).__name__}"
            ) from None

    @property
    def _name(self) -> str:
        return self._named if isinstance(self._named, str) else _type_name(self._named)

    def _found(self) -> Conversion:
        """The conversion, looked up when it is first needed: the module may import the app."""
        if self._conversion is None:
            from taskline.conversion import Conversion

            hint = _load(self._queue, self._named) if isinstance(self._named, str) else self._named
            try:
                self._conversion = Conversion(hint)
            except Exception as error:
                raise ConfigurationError(
                    f"queues: {self._queue}: model {self._name} cannot be a model: {error}"
                ) from None
        return self._conversion


def _check_lanes(name: str, found: QueueSettings, protocol: str) -> None:
    if found.fair is None:
        if found.lanes is not None:
            raise ConfigurationError(
                f"queues: {name}: lanes={found.lanes} goes with fair: the header that shares it"
            )
        return
    if not found.fair:
        raise ConfigurationError(f"queues: {name}: fair='': name the header, such as tenant")
    if found.plain or found.task is not None:
        raise ConfigurationError(
            f"queues: {name}: plain messages have no headers to be shared by: leave out fair"
        )
    if protocol != "taskline":
        raise ConfigurationError(
            f"queues: {name}: Celery's clients and workers know no lanes: leave out fair"
        )
    if found.lanes is not None and not 2 <= found.lanes <= MOST_LANES:
        raise ConfigurationError(
            f"queues: {name}: lanes={found.lanes}: must be from 2 to {MOST_LANES}"
        )


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _load(queue: str, path: str) -> Any:
    from importlib import import_module

    module, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    if not module:
        raise ConfigurationError(
            f"queues: {queue}: model={path!r} names no module: write package.module:Class"
        )
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, ValueError, AttributeError) as error:
        raise ConfigurationError(
            f"queues: {queue}: model={path!r} cannot be loaded: {error}"
        ) from None
    except Exception as error:
        raise ConfigurationError(
            f"queues: {queue}: model={path!r}: importing {module} failed: {error!r}"
        ) from error


def _entry(setting: str, name: str, given: Mapping[str, Any]) -> QueueSettings:
    fields = QueueSettings.__struct_fields__
    for key in given:
        if key not in fields:
            raise ConfigurationError(
                f"{setting}: {name}: unknown option {key!r}{nearest(str(key), fields)}"
            )
    if given.get("protocol") not in (None, *PROTOCOLS):
        raise ConfigurationError(
            f"{setting}: {name}: protocol={given['protocol']!r}: choose {' or '.join(PROTOCOLS)}"
        )
    for key in ("name", "model", "task", "dead_letters"):
        if given.get(key) == "":
            raise ConfigurationError(f"{setting}: {name}: {key}='' is empty: leave it out")
    if setting == "profiles" and "profile" in given:
        raise ConfigurationError(f"profiles: {name}: a profile has no profile of its own")
    try:
        return msgspec.convert(dict(given), QueueSettings)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{setting}: {name}: {error}") from None


def _over(queue: QueueSettings, profile: QueueSettings) -> QueueSettings:
    """The queue's own settings, and the profile's where it has none."""
    return QueueSettings(
        **{
            field: value if value is not None else getattr(profile, field)
            for field, value in msgspec.structs.asdict(queue).items()
        }
    )
