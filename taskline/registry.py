"""Finds the class behind a broker or backend: by URL, list of URLs, or connector mapping."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    NamedTuple,
    Protocol,
    TypeAlias,
    TypeVar,
    cast,
)

from taskline.errors import ConfigurationError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints


class _Opened(Protocol):
    distributes: ClassVar[bool]


T = TypeVar("T", bound=_Opened)

Spec: TypeAlias = "str | Sequence[str] | Mapping[str, Any]"
"""What an app is given as broker or backend."""

ALIASES = {"local": "sqlite", "mongo": "mongodb"}
"""The types of Sergeant's connectors, by our names."""

BY_KOMBU = ("amqp", "amqps", "pyamqp", "sqs", "qpid", "sqla", "gcpubsub", "azureservicebus")
"""Schemes of brokers in Celery's URLs that kombu serves here, after `kombu+`."""


class Kind(NamedTuple):
    """Where a class is, and the extra of Taskline that installs its driver."""

    path: str
    extra: str = ""


class Registry(Generic[T]):
    """The classes of one sort by scheme; each is imported when it is first opened.

    `what` is the word for messages ("broker", "backend"), `group` the entry
    point group in which plug-ins register theirs.
    """

    def __init__(self, what: str, group: str, base: type, known: Mapping[str, Kind]) -> None:
        self.what = what
        self.group = group
        self.base = base
        self.known = dict(known)

    def find(self, spec: Spec) -> tuple[type[T], Spec]:
        """The class for a spec, and the spec as its `from_spec` takes it.

        A list of one URL is that URL. Raises `ConfigurationError`.
        """
        if isinstance(spec, str):
            kind = self._scheme(spec)
        elif isinstance(spec, Mapping):
            kind = self._type(spec)
        elif isinstance(spec, Sequence) and all(isinstance(url, str) for url in spec):
            if len(spec) == 1:
                return self.find(spec[0])
            kind = self._shared_scheme(spec)
        else:
            raise ConfigurationError(
                f"{self.what} must be a URL, a list of URLs or a mapping with 'type', "
                f"not {type(spec).__name__}"
            )
        return self._load(kind, several=_nodes(spec) > 1), spec

    def _scheme(self, url: str) -> str:
        scheme, colon, _ = url.partition("://")
        if not colon or not scheme:
            raise ConfigurationError(
                f"{self.what} {hide_password(url)!r} is not a URL: "
                "write it as sqlite:///file.db or memory://"
            )
        return scheme.lower()

    def _shared_scheme(self, urls: Sequence[str]) -> str:
        if not urls:
            raise ConfigurationError(f"the list of {self.what} URLs is empty: name at least one")
        schemes = sorted({self._scheme(url) for url in urls})
        if len(schemes) > 1:
            raise ConfigurationError(
                f"the nodes of one {self.what} are of one kind, not {' and '.join(schemes)}"
            )
        return schemes[0]

    def _type(self, mapping: Mapping[str, Any]) -> str:
        name = mapping.get("type")
        if not isinstance(name, str) or not name:
            raise ConfigurationError(
                f"a {self.what} mapping needs a 'type', such as {{'type': 'sqlite'}}; "
                f"got the keys {', '.join(map(str, mapping)) or 'none'}"
            )
        return name if _is_path(name) else ALIASES.get(name.lower(), name.lower())

    def _load(self, name: str, several: bool) -> type[T]:
        kind = self._kind(name)
        found = self._import(name, kind)
        if several and not found.distributes:
            raise ConfigurationError(
                f"{name} cannot spread over several nodes: give one {self.what} URL, not a list"
            )
        return found

    def _kind(self, name: str) -> Kind:
        if _is_path(name):
            return Kind(name if ":" in name else ":".join(name.rsplit(".", 1)))
        kind = (
            self.known.get(name)
            or self.known.get(name.partition("+")[0] + "+*")
            or self._plug_in(name)
        )
        if kind is not None:
            return kind
        plug_ins = [point.name for point in self._plug_ins()]
        there = ", ".join(sorted({*self.known, *plug_ins}))
        from difflib import get_close_matches

        near = get_close_matches(name, [*self.known, *plug_ins, *ALIASES], 1)
        if name in BY_KOMBU and "kombu" in self.known:
            near = [f"kombu+{name}://…"]
        hint = f"did you mean {near[0]!r}? There are: " if near else "there are: "
        raise ConfigurationError(f"unknown {self.what} {name!r}: {hint}{there}")

    def _plug_in(self, name: str) -> Kind | None:
        """Where an installed distribution says that this scheme is."""
        paths = sorted({point.value for point in self._plug_ins() if point.name == name})
        if len(paths) > 1:
            raise ConfigurationError(
                f"several plug-ins bring a {self.what} named {name!r}: {' and '.join(paths)}; "
                f"uninstall one, or name the class: {{'type': {paths[0]!r}, ...}}"
            )
        return Kind(paths[0]) if paths else None

    def _plug_ins(self) -> EntryPoints:
        from importlib.metadata import entry_points

        return entry_points(group=self.group)

    def _import(self, name: str, kind: Kind) -> type[T]:
        from importlib import import_module

        module, _, attribute = kind.path.partition(":")
        try:
            found = getattr(import_module(module), attribute)
        except (ImportError, ValueError) as error:
            remedy = f"; install it: pip install 'taskline[{kind.extra}]'" if kind.extra else ""
            raise ConfigurationError(
                f"the {name} {self.what} cannot be loaded: {error}{remedy}"
            ) from error
        except AttributeError:
            raise ConfigurationError(
                f"the {name} {self.what} cannot be loaded: {module} has no {attribute!r}"
            ) from None
        except Exception as error:
            raise ConfigurationError(
                f"the {name} {self.what} cannot be loaded: importing {module} failed: {error!r}"
            ) from error
        if not (isinstance(found, type) and issubclass(found, self.base)):
            raise ConfigurationError(
                f"the {name} {self.what} at {kind.path} is not a taskline {self.base.__name__}"
            )
        return cast("type[T]", found)


def _is_path(name: str) -> bool:
    """Whether it is where a class is, `package.module:Class` or `package.module.Class`."""
    return ":" in name or "." in name


def _nodes(spec: Spec) -> int:
    """How many servers a spec names."""
    if isinstance(spec, str):
        return 1
    if isinstance(spec, Mapping):
        params = spec.get("params")
        nodes = spec.get("nodes") or (params.get("nodes") if isinstance(params, Mapping) else ())
        return len(nodes) if isinstance(nodes, Sequence) else 1
    return len(spec)


def options_of(spec: Spec, rest: str, **known: Callable[[str], Any]) -> dict[str, Any]:
    """The options in a URL or a connector mapping, by name.

    `rest` names the option that is the URL's part after `://`; `known` names the
    others, from the URL's query, each with what converts its text. A mapping has
    them beside its `type`, or in `params`. Raises `ConfigurationError` for others.
    """
    names = [rest, *known]
    if isinstance(spec, str):
        scheme, _, tail = spec.partition("://")
        path, _, query = tail.partition("?")
        options: dict[str, Any] = {rest: path}
        if query:
            from urllib.parse import parse_qsl

            options.update(parse_qsl(query, keep_blank_values=True))
    elif isinstance(spec, Mapping):
        scheme = str(spec.get("type"))
        options = {key: value for key, value in spec.items() if key not in ("type", "params")}
        options.update(spec.get("params") or {})
    else:
        raise ConfigurationError(f"one URL or mapping is needed, not {type(spec).__name__}")
    for name, value in options.items():
        if name not in names:
            raise ConfigurationError(f"{scheme} has no option {name!r}; it has: {', '.join(names)}")
        if name in known and isinstance(value, str):
            try:
                options[name] = known[name](value)
            except ValueError as error:
                raise ConfigurationError(f"{scheme} option {name}={value!r}: {error}") from None
    return options


def hide_password(url: str) -> str:
    """The URL with `***` for the password, fit for messages and logs."""
    scheme, colon, tail = url.partition("://") if "://" in url else ("", "", url)
    credentials, at, host = tail.rpartition("@")
    user, secret, _ = credentials.partition(":")
    return f"{scheme}{colon}{user}{':***' if secret else ''}{at}{host}"
