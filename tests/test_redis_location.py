from __future__ import annotations

import pytest

from taskline.errors import ConfigurationError
from taskline.redis.location import TLS, Location, locate
from taskline.redis.packing import pack_id, unpack_id
from taskline.transports import TRANSPORTS


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("redis://", Location()),
        ("redis://cache", Location("cache")),
        ("redis://cache:6380/3", Location("cache", 6380, database=3)),
        ("redis://cache?db=3", Location("cache", database=3)),
        ("redis://:secret@cache", Location("cache", password="secret")),
        ("redis://ann:p%40ss@cache", Location("cache", username="ann", password="p@ss")),
        ("redis://[::1]:6380", Location("::1", 6380)),
        ("rediss://cache", Location("cache", tls=TLS())),
        ("rediss://cache?tls_ca=/ca&tls_verify=ca", Location("cache", tls=TLS("/ca", verify="ca"))),
        ("unix:///run/redis.sock?db=2", Location(path="/run/redis.sock", database=2)),
        ("redis+unix:///run/r.sock", Location(path="/run/r.sock")),
        (
            "redis://cache?timeout=1.5&namespace=shop",
            Location("cache", timeout=1.5, namespace="shop"),
        ),
    ],
)
def test_a_url_names_a_server(url: str, location: Location) -> None:
    assert TRANSPORTS.find(url)[1] == url
    (found,) = locate(url)
    if location.path:
        location = location._replace(host=found.host, port=found.port)
    assert found == location


@pytest.mark.parametrize(
    ("url", "location"),
    [
        (
            "redis+sentinel://:pw@a,b:1/mymaster/2?sentinel_password=s&timeout=9",
            Location(
                "b", 1, password="pw", database=2, timeout=9.0, seeds=(("a", 26379), ("b", 1)),
                service="mymaster", sentinel_password="s",
            ),
        ),
        ("redis+cluster://a,b:1", Location("b", 1, seeds=(("a", 6379), ("b", 1)))),
        ("rediss+cluster://a", Location("a", tls=TLS(), seeds=(("a", 6379),))),
    ],
)  # fmt: skip
def test_a_url_names_those_who_know_the_server(url: str, location: Location) -> None:
    assert TRANSPORTS.find(url)[1] == url
    assert locate(url) == [location]


def test_a_store_has_parts_in_a_cluster() -> None:
    found = locate("redis+cluster://a?namespace=shop&partitions=3")
    assert [each.namespace for each in found] == ["shop/0", "shop/1", "shop/2"]


def test_hosts_are_shown_without_the_password() -> None:
    (location,) = locate("redis+sentinel://:pw@a,b:1/mymaster")
    assert str(location) == "redis+sentinel://a:26379,b:1/mymaster"


def test_the_connector_of_sergeant_is_understood() -> None:
    node = {"host": "localhost", "port": 6379, "password": None, "database": 0}
    assert locate({"type": "redis", "params": {"nodes": [node]}}) == [Location()]
    other = {**node, "port": 6380, "password": "x"}
    assert locate({"type": "redis", "nodes": [node, other]}) == [
        Location(),
        Location(port=6380, password="x"),
    ]


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("redis://cache?tiemout=3", "no option 'tiemout'"),
        ("redis://cache:x", "no port"),
        ("redis://cache/x", "database='x'"),
        ("redis://cache?timeout=0", "timeout='0'"),
        ("redis://cache?namespace=a{b}", "braces"),
        ("rediss://cache?tls_verify=maybe", "tls_verify='maybe'"),
        ("unix://", "path of a socket"),
        ("redis+sentinel://a,b", "needs the name of the master"),
        ("redis+cluster://a?sentinel_password=x", "no option 'sentinel_password'"),
        ("redis+cluster://a?db=1&partitions=2", "no databases"),
        (["redis://cache", "redis://cache"], "named twice"),
        (["redis://a?namespace=x", "redis://b"], "one namespace"),
        ({"type": "redis", "nodes": []}, "'nodes'"),
        ({"type": "redis", "nodes": ["cache"]}, "mapping with 'host'"),
        ({"type": "redis", "nodes": [{"hots": "x"}]}, "no 'hots'"),
    ],
)
def test_what_is_wrong_is_named(spec: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        locate(spec)


def test_no_password_is_shown() -> None:
    (location,) = locate("redis://ann:se-cret@cache:1/2")
    assert str(location) == "redis://cache:1/2"


@pytest.mark.parametrize(
    "id",
    [
        "0198f0c1a2b37def8123456789abcdef",
        "",
        "x",
        "ü",
        "a" * 15,
        "b" * 16,
        "A" * 32,
        "z" * 32,
        "0" * 31,
    ],
)
def test_an_id_is_unpacked_as_it_was(id: str) -> None:
    assert unpack_id(pack_id(id)) == id


def test_no_two_ids_are_packed_alike() -> None:
    hexadecimal = "ff" + "61" * 15
    texts = ["a" * 15, "a" * 14, hexadecimal, "ÿ" + "a" * 14, "ÿÿ"]
    assert len({pack_id(each) for each in texts}) == len(texts)
