from __future__ import annotations

import pytest

from taskline.errors import ConfigurationError
from taskline.mongo.location import Location, locate

DURABLE = (("w", "majority"), ("journal", "true"))


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("mongodb://db", Location(hosts=("db:27017",))),
        ("mongodb://db:1/shop", Location(hosts=("db:1",), database="shop", path="shop")),
        ("mongodb://a,b:1", Location(hosts=("a:27017", "b:1"))),
        ("mongodb://[::1]", Location(hosts=("[::1]:27017",))),
        ("mongodb+srv://cluster.example", Location("mongodb+srv", ("cluster.example",))),
        (
            "mongodb://ann:p%40ss@db?timeout=1.5&namespace=shop",
            Location(
                hosts=("db:27017",), username="ann", password="p@ss", timeout=1.5, namespace="shop"
            ),
        ),
    ],
)
def test_a_url_names_a_deployment(url: str, location: Location) -> None:
    assert locate(url) == [location._replace(options=DURABLE)]


def test_options_of_the_driver_reach_it() -> None:
    (found,) = locate("mongodb://db/?replicaSet=rs0&tls=true&authSource=%24external&namespace=x")
    assert found.url == (
        "mongodb://db:27017/?replicaSet=rs0&tls=true&authSource=%24external&w=majority&journal=true"
    )
    assert found.replica_set == "rs0"
    assert found.option("TLS") == "true"


def test_the_write_concern_may_be_chosen() -> None:
    (found,) = locate("mongodb://db?w=1")
    assert found.options == (("w", "1"),)


def test_the_password_is_in_the_drivers_url_only() -> None:
    (found,) = locate("mongodb://ann:p%40s%2Fs@db/shop")
    assert found.url.startswith("mongodb://ann:p%40s%2Fs@db:27017/shop?")
    assert str(found) == "mongodb://db:27017/shop"


def test_sergeants_connectors_as_they_stand() -> None:
    nodes = [
        {"host": "localhost", "port": 27017, "replica_set": "rs"},
        {"host": "localhost", "port": 27018, "replica_set": "rs"},
    ]
    found = locate({"type": "mongo", "params": {"nodes": nodes}})
    assert [each.hosts for each in found] == [("localhost:27017",), ("localhost:27018",)]
    assert [each.replica_set for each in found] == ["rs", "rs"]
    assert all(each.initiate for each in found)


def test_a_node_says_all_that_a_url_says() -> None:
    node = {
        "host": "db",
        "username": "ann",
        "password": "s",
        "database": "shop",
        "options": {"tls": True, "authSource": "admin", "w": 1},
    }
    (found,) = locate({"type": "mongodb", "nodes": [node], "namespace": "app", "timeout": 2})
    assert found == Location(
        hosts=("db:27017",),
        database="shop",
        namespace="app",
        timeout=2.0,
        username="ann",
        password="s",
        options=(("tls", "true"), ("authSource", "admin"), ("w", "1")),
    )


def test_several_urls_are_several_deployments() -> None:
    assert [each.hosts for each in locate(["mongodb://a", "mongodb://b"])] == [
        ("a:27017",),
        ("b:27017",),
    ]


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("mongodb://", "names no host"),
        ("mongodb://db:x", "is no port"),
        ("mongodb+srv://name:27017", "takes one name, without a port"),
        ("mongodb://db?timeout=soon", "timeout='soon' is not a number of seconds"),
        ("mongodb://db?timeout=0", "is not a number of seconds"),
        ("mongodb://db?namespace=a$b", "cannot begin a collection"),
        ("mongodb://db/a.b", "cannot be the name of a database"),
        ("mongodb://db?w=0", "w=0 asks for no answer"),
        ("mongodb://db?initiate=maybe", "neither true nor false"),
        ("mongodb://db?initiate=true", "only one host with a replicaSet"),
        ("mongodb://a,b?initiate=true&replicaSet=rs", "only one host with a replicaSet"),
        (["mongodb://a", "mongodb://a:27017"], "is named twice"),
        ({"type": "mongodb", "nodes": []}, "needs 'nodes'"),
        ({"type": "mongodb", "nodes": ["a"]}, "is a mapping with 'host'"),
        ({"type": "mongodb", "nodes": [{"hots": "a"}]}, "has no 'hots'"),
        ({"type": "mongodb", "nodes": [{"port": "x"}]}, "is no port"),
        ({"type": "mongodb", "nodes": [{"options": 1}]}, "'options' is a mapping"),
    ],
)
def test_what_makes_no_sense_is_refused(spec: object, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint.replace("$", r"\$")):
        locate(spec)  # type: ignore[arg-type]


def test_no_password_in_a_complaint() -> None:
    with pytest.raises(ConfigurationError) as caught:
        locate("mongodb://ann:hush@db:x")
    assert "hush" not in str(caught.value)
