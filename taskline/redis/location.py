"""Where a Redis server is and how to log in: URLs and connector mappings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from taskline.errors import ConfigurationError
from taskline.registry import Spec, hide_password

PORT, SENTINEL_PORT = 6379, 26379
TIMEOUT = 5.0
NAMESPACE = "taskline"
VERIFY = ("full", "ca", "none")

_OPTIONS = (
    "timeout", "namespace", "db", "username", "password",
    "tls_ca", "tls_cert", "tls_key", "tls_verify",
)  # fmt: skip
_MORE_OPTIONS = {"sentinel": ("sentinel_password",), "cluster": ("partitions",)}
_KEYS = {
    "host", "port", "path", "database", "username", "password", "timeout", "namespace",
    "tls", "tls_ca", "tls_cert", "tls_key", "tls_verify",
}  # fmt: skip


class TLS(NamedTuple):
    """How the server's certificate is verified, and ours if the server wants one."""

    ca: str | None = None
    """A file of authorities; None takes the system's."""
    cert: str | None = None
    key: str | None = None
    verify: str = "full"
    """`full`: authority and host name; `ca`: authority only; `none`: nothing."""


class Location(NamedTuple):
    """One server. Two locations of one store are equal in address, database and namespace."""

    host: str = "localhost"
    port: int = PORT
    path: str = ""
    """Of a Unix socket, instead of host and port."""
    database: int = 0
    username: str = ""
    password: str = ""
    tls: TLS | None = None
    timeout: float = TIMEOUT
    """Seconds: for a connection, for an answer, and for all tries of one call together."""
    namespace: str = NAMESPACE
    """Begins all keys, so that several apps may share a database."""
    seeds: tuple[tuple[str, int], ...] = ()
    """Sentinels, or nodes of a cluster, that know where the store is."""
    service: str = ""
    """The name by which Sentinels know the master."""
    sentinel_password: str = ""

    @property
    def store(self) -> tuple[object, ...]:
        """What tells one store from another."""
        server = (self.service, *sorted(self.seeds)) if self.seeds else (self.host, self.port)
        return (server, self.path, self.database, self.namespace)

    def __str__(self) -> str:
        if self.seeds:
            hosts = ",".join(f"{host}:{port}" for host, port in self.seeds)
            kind = "sentinel" if self.service else "cluster"
            return f"{self._scheme}+{kind}://{hosts}/{self.service}".rstrip("/")
        where = f"unix://{self.path}" if self.path else f"{self._scheme}://{self.host}:{self.port}"
        return f"{where}/{self.database}" if self.database and not self.path else where

    @property
    def _scheme(self) -> str:
        return "rediss" if self.tls else "redis"


def locate(spec: Spec) -> list[Location]:
    """The servers that a URL, a list of URLs or a connector mapping names.

    `redis://[[user]:password@]host[:port][/database]`, `rediss://…` for TLS,
    `unix:///path/of.sock`, `redis+sentinel://host,host/service`, `redis+cluster://host,host`,
    each with options after `?`; or a mapping with `nodes`.
    Raises `ConfigurationError`.
    """
    if isinstance(spec, str):
        found = _from_url(spec)
    elif isinstance(spec, Mapping):
        found = _from_mapping(spec)
    else:
        found = [each for url in spec for each in _from_url(url)]
    stores = [each.store for each in found]
    for each in found:
        if stores.count(each.store) > 1:
            raise ConfigurationError(f"the Redis node {each} is named twice")
    if len({each.namespace.partition("/")[0] for each in found}) > 1:
        raise ConfigurationError("the nodes of one Redis store have one namespace, not several")
    return found


def _from_url(url: str) -> list[Location]:
    scheme, colon, rest = url.partition("://")
    base, _, kind = scheme.lower().partition("+")
    if kind in _MORE_OPTIONS:
        return _from_seeds(f"{base}{colon}{rest}", kind)
    return [_from_plain_url(url, _OPTIONS)]


def _from_seeds(url: str, kind: str) -> list[Location]:
    """Several hosts between commas; the store is where they say."""
    scheme, _, rest = url.partition("://")
    authority = rest.partition("?")[0].partition("/")[0]
    credentials, at, hosts = authority.rpartition("@")
    service = ""
    if kind == "sentinel":
        path, question, query = rest[len(authority) :].lstrip("/").partition("?")
        service, _, database = path.partition("/")
        if not service:
            raise ConfigurationError(
                f"{scheme}+sentinel needs the name of the master: {scheme}+sentinel://host/mymaster"
            )
        rest = f"{authority}/{database}{question}{query}"
    options = dict(parse_qsl(rest.partition("?")[2], keep_blank_values=True))
    seeds = []
    for host in hosts.split(","):
        one = f"{scheme}://{credentials}{at}{host}{rest[len(authority) :]}"
        seed = _from_plain_url(one, _OPTIONS + _MORE_OPTIONS[kind])
        port = seed.port if ":" in host or kind == "cluster" else SENTINEL_PORT
        seeds.append((seed.host, port))
    location = seed._replace(
        seeds=tuple(seeds), service=service, sentinel_password=options.get("sentinel_password", "")
    )
    parts = _number(options, "partitions", 1, int, f"{scheme}+{kind}")
    if parts <= 1:
        return [location]
    if location.database:
        raise ConfigurationError("a Redis cluster has no databases but 0")
    return [location._replace(namespace=f"{location.namespace}/{part}") for part in range(parts)]


def _from_plain_url(url: str, known: tuple[str, ...]) -> Location:
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in options:
        if name not in known:
            raise ConfigurationError(
                f"{parts.scheme} has no option {name!r}; it has: {', '.join(known)}"
            )
    values: dict[str, Any] = dict(options)
    if "db" in values:
        values["database"] = values.pop("db")
    values.setdefault("username", unquote(parts.username or ""))
    values.setdefault("password", unquote(parts.password or ""))
    if parts.scheme in ("unix", "redis+unix"):
        values["path"] = unquote(parts.path)
        if not values["path"]:
            raise ConfigurationError(
                f"{hide_password(url)!r} needs the path of a socket: {parts.scheme}:///path"
            )
    else:
        try:
            values["host"], values["port"] = parts.hostname or "localhost", parts.port or PORT
        except ValueError:
            raise ConfigurationError(f"the port in {hide_password(url)!r} is no port") from None
        if parts.path.strip("/"):
            values["database"] = parts.path.strip("/")
        values["tls"] = parts.scheme == "rediss"
    return _location(values, hide_password(url))


def _from_mapping(spec: Mapping[str, Any]) -> list[Location]:
    options = {key: value for key, value in spec.items() if key not in ("type", "params")}
    options.update(spec.get("params") or {})
    common = {key: value for key, value in options.items() if key != "nodes"}
    nodes = options.get("nodes", [{}])
    if not isinstance(nodes, list | tuple) or not nodes:
        raise ConfigurationError("a redis mapping needs 'nodes': a list of {'host': …, 'port': …}")
    if str(spec.get("type")).lower() == "rediss":
        common.setdefault("tls", True)
    found = []
    for node in nodes:
        if not isinstance(node, Mapping):
            raise ConfigurationError(f"a redis node is a mapping with 'host', not {node!r}")
        values = {**common, **node}
        unknown = sorted(set(values) - _KEYS)
        if unknown:
            raise ConfigurationError(
                f"a redis node has no {unknown[0]!r}; it has: {', '.join(sorted(_KEYS))}"
            )
        found.append(_location(values, f"redis node {values.get('host', 'localhost')}"))
    return found


def _location(values: dict[str, Any], about: str) -> Location:
    tls = None
    if values.get("tls"):
        verify = values.get("tls_verify") or "full"
        if verify not in VERIFY:
            raise ConfigurationError(f"{about}: tls_verify={verify!r}, use {', '.join(VERIFY)}")
        tls = TLS(values.get("tls_ca"), values.get("tls_cert"), values.get("tls_key"), verify)
    namespace = values.get("namespace", NAMESPACE)
    if not namespace or not set("{}").isdisjoint(namespace):
        raise ConfigurationError(f"{about}: namespace={namespace!r} must be a name without braces")
    return Location(
        host=values.get("host") or "localhost",
        port=_number(values, "port", PORT, int, about),
        path=values.get("path") or "",
        database=_number(values, "database", 0, int, about),
        username=values.get("username") or "",
        password=values.get("password") or "",
        tls=tls,
        timeout=_number(values, "timeout", TIMEOUT, float, about),
        namespace=namespace,
    )


def _number(values: dict[str, Any], name: str, default: Any, kind: type, about: str) -> Any:
    value = values.get(name)
    if value is None:
        return default
    try:
        number = kind(value)
    except (TypeError, ValueError):
        number = -1
    if number < 0 or (name == "timeout" and not 0 < number < float("inf")):
        raise ConfigurationError(f"{about}: {name}={value!r} is not a number that fits")
    return number
