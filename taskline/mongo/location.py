"""Where MongoDB is and how to log in: URLs and connector mappings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode

from taskline.errors import ConfigurationError
from taskline.registry import Spec, hide_password

PORT = 27017
TIMEOUT = 5.0
DATABASE = NAMESPACE = "taskline"
DURABLE = {"w": "majority", "journal": "true"}
"""The write concern where none is given."""

_KEYS = {
    "host", "port", "database", "username", "password", "replica_set", "timeout", "namespace",
    "options",
}  # fmt: skip


class Location(NamedTuple):
    """One deployment: a replica set, a sharded cluster's router, or one server.

    Two locations of one store are equal in hosts, database and namespace.
    """

    scheme: str = "mongodb"
    hosts: tuple[str, ...] = ("localhost:27017",)
    """`host:port`, or the name that `mongodb+srv` looks up."""
    database: str = DATABASE
    namespace: str = NAMESPACE
    """Begins the names of all collections, so that several apps may share a database."""
    timeout: float = TIMEOUT
    """Seconds: to find a server, to connect, and for all tries of one call. Twice for an answer."""
    username: str = ""
    password: str = ""
    path: str = ""
    """The database of the URL, in which the user is looked for if `authSource` says nothing."""
    options: tuple[tuple[str, str], ...] = ()
    """What else the URL said, for the driver."""
    initiate: bool = False
    """Whether a server that is in no replica set yet is made one of its own."""

    @property
    def store(self) -> tuple[object, ...]:
        """What tells one store from another."""
        return (*sorted(self.hosts), self.database, self.namespace)

    @property
    def url(self) -> str:
        """For the driver. It has the password."""
        login = quote(self.username, safe="")
        if self.password:
            login += f":{quote(self.password, safe='')}"
        at = "@" if login else ""
        query = f"?{urlencode(self.options)}" if self.options else ""
        return f"{self.scheme}://{login}{at}{','.join(self.hosts)}/{self.path}{query}"

    @property
    def replica_set(self) -> str:
        """Its name, where it is given."""
        return self.option("replicaSet")

    def option(self, name: str) -> str:
        """What the URL said of an option of the driver; empty if nothing."""
        found = [value for key, value in self.options if key.lower() == name.lower()]
        return found[-1] if found else ""

    def __str__(self) -> str:
        return f"{self.scheme}://{','.join(self.hosts)}/{self.database}"


def locate(spec: Spec) -> list[Location]:
    """The deployments that a URL, a list of URLs or a connector mapping names.

    `mongodb://[user:password@]host[:port][,host…][/database]`, `mongodb+srv://name`, each
    with options after `?`: `namespace`, `timeout`, `initiate`, and all of the driver's. The
    hosts of one URL are one deployment. The `nodes` of a mapping are one each, and made
    replica sets of one member where they are none yet. Raises `ConfigurationError`.
    """
    if isinstance(spec, str):
        found = [_from_url(spec)]
    elif isinstance(spec, Mapping):
        found = _from_mapping(spec)
    else:
        found = [_from_url(url) for url in spec]
    stores = [each.store for each in found]
    for each in found:
        if stores.count(each.store) > 1:
            raise ConfigurationError(f"the MongoDB node {each} is named twice")
    return found


def _from_url(url: str) -> Location:
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    about = hide_password(url)
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    login, _, names = authority.rpartition("@")
    username, _, password = login.partition(":")
    values: dict[str, Any] = {
        "hosts": _hosts(names, scheme, about),
        "path": unquote(path),
        "username": unquote(username),
        "password": unquote(password),
    }
    options: list[tuple[str, str]] = []
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key in ("namespace", "timeout", "initiate"):
            values[key] = value
        else:
            options.append((key, value))
    return _location(scheme, values, options, about)


def _hosts(names: str, scheme: str, about: str) -> tuple[str, ...]:
    hosts = []
    for name in names.split(","):
        _, colon, port = name.rpartition(":")
        if not name:
            raise ConfigurationError(f"{about!r} names no host: {scheme}://host/database")
        if scheme == "mongodb+srv":
            if colon or "," in names:
                raise ConfigurationError(f"{about!r}: mongodb+srv takes one name, without a port")
        elif not colon or name.endswith("]"):
            name = f"{name}:{PORT}"
        elif not port.isdigit() and not name.startswith("%2F"):
            raise ConfigurationError(f"the port in {about!r} is no port")
        hosts.append(name)
    return tuple(hosts)


def _from_mapping(spec: Mapping[str, Any]) -> list[Location]:
    found = {key: value for key, value in spec.items() if key not in ("type", "params")}
    found.update(spec.get("params") or {})
    common = {key: value for key, value in found.items() if key != "nodes"}
    nodes = found.get("nodes", [{}])
    if not isinstance(nodes, list | tuple) or not nodes:
        raise ConfigurationError(
            "a mongodb mapping needs 'nodes': a list of {'host': …, 'port': …, 'replica_set': …}"
        )
    return [_from_node(common, node) for node in nodes]


def _from_node(common: Mapping[str, Any], node: object) -> Location:
    if not isinstance(node, Mapping):
        raise ConfigurationError(f"a mongodb node is a mapping with 'host', not {node!r}")
    values = {**common, **node}
    unknown = sorted(set(values) - _KEYS)
    if unknown:
        raise ConfigurationError(
            f"a mongodb node has no {unknown[0]!r}; it has: {', '.join(sorted(_KEYS))}"
        )
    host, port = values.get("host") or "localhost", values.get("port") or PORT
    about = f"mongodb node {host}"
    if not str(port).isdigit():
        raise ConfigurationError(f"{about}: port={port!r} is no port")
    more = values.get("options") or {}
    if not isinstance(more, Mapping):
        raise ConfigurationError(f"{about}: 'options' is a mapping of the driver's options")
    options = [(str(key), _text(value)) for key, value in more.items()]
    if values.get("replica_set"):
        options.append(("replicaSet", str(values["replica_set"])))
    given = {
        "hosts": (f"{host}:{port}",),
        "username": values.get("username") or "",
        "password": values.get("password") or "",
        "initiate": bool(values.get("replica_set")),
    }
    for name in ("database", "namespace", "timeout"):
        if values.get(name) is not None:
            given[name] = values[name]
    return _location("mongodb", given, options, about)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _location(
    scheme: str, values: dict[str, Any], options: list[tuple[str, str]], about: str
) -> Location:
    given = {key.lower() for key, _ in options}
    if ("w", "0") in options:
        raise ConfigurationError(
            f"{about}: w=0 asks for no answer, but Taskline has to know what was stored: "
            "use majority, or w=1"
        )
    if not given & {"w", "journal"}:
        options = [*options, *DURABLE.items()]
    namespace = values.get("namespace", NAMESPACE)
    if not namespace or "$" in namespace or "\0" in namespace or namespace.startswith("system."):
        raise ConfigurationError(f"{about}: namespace={namespace!r} cannot begin a collection")
    database = values.get("database") or values.get("path") or DATABASE
    if set(database) & set('/\\. "$\0'):
        raise ConfigurationError(f"{about}: {database!r} cannot be the name of a database")
    initiate = values.get("initiate", False)
    if isinstance(initiate, str):
        if initiate not in ("true", "false"):
            raise ConfigurationError(f"{about}: initiate={initiate!r} is neither true nor false")
        initiate = initiate == "true"
    location = Location(
        scheme=scheme,
        hosts=values["hosts"],
        database=database,
        namespace=namespace,
        timeout=_seconds(values.get("timeout", TIMEOUT), about),
        username=values.get("username", ""),
        password=values.get("password", ""),
        path=values.get("path", ""),
        options=tuple(options),
        initiate=initiate,
    )
    if initiate and (len(location.hosts) > 1 or not location.replica_set):
        raise ConfigurationError(
            f"{about}: only one host with a replicaSet can be initiated, not {location}"
        )
    return location


def _seconds(value: Any, about: str) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise ConfigurationError(f"{about}: timeout={value!r} is not a number of seconds")
    return seconds
