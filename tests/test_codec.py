from __future__ import annotations

import hashlib
import hmac
import json
import sys
from typing import Any

import pytest

from taskline import compression
from taskline.codec import Codec
from taskline.config import Settings
from taskline.errors import ConfigurationError, MessageRefused, SerializationError
from taskline.message import FAILURE, SUCCESS, Header, OutcomeHeader

COMPRESSIONS = ["zlib", "gzip", "bz2", "lzma", "zstd"]


def header(**fields: Any) -> Header:
    given = {"v": 1, "id": "a1", "task": "shop.pay", "queue": "default", "sent": 1700000000.5}
    return Header(**{**given, **fields})


def codec(**settings: Any) -> Codec:
    return Codec(Settings(**settings))


def test_a_message_is_a_header_line_and_a_body() -> None:
    message = codec().encode(header(), ([1, "ä"], {"copy": True}))
    assert message.frame == (
        b'{"v":1,"id":"a1","task":"shop.pay","queue":"default","sent":1700000000.5}\n'
        + '[[1,"ä"],{"copy":true}]'.encode()
    )
    assert message.header == header()


def test_a_message_comes_back() -> None:
    sent = header(attempt=3, priority=9, eta=1.5, retry={"max": 3}, headers={"tenant": "a"})
    one = codec()
    found, body = one.open(one.encode(sent, [[1], {"a": None}]).frame)
    assert found == sent
    assert one.loads(found, body) == [[1], {"a": None}]
    assert one.arguments(found, body) == ([1], {"a": None})


@pytest.mark.parametrize("name", ["json", "msgpack", "pickle", "cloudpickle", "yaml"])
def test_every_serializer(name: str) -> None:
    one = codec(serializer=name, accept=[name], signing_key="k")
    found, body = one.open(one.encode(header(serializer=name), [[1, "ä"], {}]).frame)
    assert one.arguments(found, body) == ([1, "ä"], {})


def test_unknown_header_fields_are_ignored() -> None:
    frame = codec().encode(header(), [[], {}]).frame.replace(b'{"v":1,', b'{"v":1,"new":[1],')
    found, _ = codec().open(frame)
    assert found == header()


def test_an_outcome_comes_back() -> None:
    one = codec()
    sent = OutcomeHeader(v=1, id="a1", state=SUCCESS, task="shop.pay", deliveries=2)
    outcome = one.encode_outcome(sent, {"total": 3}, sent=5.0, ttl=60.0)
    assert (outcome.id, outcome.state, outcome.fence, outcome.ttl) == ("a1", SUCCESS, (5.0, 2), 60)
    found, body = one.open_outcome(outcome.frame)
    assert found == sent
    assert one.loads(found, body) == {"total": 3}


def test_an_outcomes_error_travels_in_its_header() -> None:
    one = codec()
    error = {"type": "builtins.ValueError", "message": "no", "traceback": "…"}
    sent = OutcomeHeader(v=1, id="a1", state=FAILURE, error=error, errors=["ValueError: no"])
    found, body = one.open_outcome(one.encode_outcome(sent, None, sent=5.0, ttl=None).frame)
    assert found.error == error
    assert one.loads(found, body) is None


def test_a_message_is_no_outcome_and_an_outcome_no_message() -> None:
    one = codec()
    with pytest.raises(SerializationError, match="not a Taskline outcome"):
        one.open_outcome(one.encode(header(), [[], {}]).frame)
    outcome = one.encode_outcome(
        OutcomeHeader(v=1, id="a1", state=SUCCESS), None, sent=5.0, ttl=None
    )
    with pytest.raises(SerializationError, match="not a Taskline message"):
        one.open(outcome.frame)


@pytest.mark.parametrize("value", [[[1]], [1, {}], [[], []], {}, None, [[], {}, 1], "ab"])
def test_a_body_that_is_no_call(value: object) -> None:
    one = codec()
    found, body = one.open(one.encode(header(), value).frame)
    with pytest.raises(SerializationError, match=r"not \[arguments, keyword arguments\]"):
        one.arguments(found, body)


def test_keyword_names_are_text() -> None:
    one = codec()
    found, body = one.open(one.encode(header(serializer="msgpack"), [[], {1: 2}]).frame)
    with pytest.raises(SerializationError):
        one.arguments(found, body)


def test_what_cannot_be_written_names_task_and_value() -> None:
    with pytest.raises(SerializationError, match=r"shop\.pay: .* as json: builtins\.object is not"):
        codec().encode(header(), [[object()], {}])
    itself: list[Any] = []
    itself.append(itself)
    for name in ("json", "msgpack"):
        with pytest.raises(SerializationError, match="contains itself"):
            codec().encode(header(serializer=name), [itself, {}])
    with pytest.raises(SerializationError, match="surrogates not allowed"):
        codec().encode(header(), [["\ud800"], {}])


def test_a_header_that_cannot_be_written_is_refused() -> None:
    itself: dict[str, Any] = {}
    itself["a"] = itself
    outcome = OutcomeHeader(v=1, id="a1", state=FAILURE, task="shop.pay")
    for value in (object(), itself, "\ud800"):
        outcome.error = {"args": [value]}
        with pytest.raises(SerializationError, match=r"shop\.pay: the header cannot be written"):
            codec().encode(header(headers={"a": value}), [[], {}])
        with pytest.raises(SerializationError, match=r"shop\.pay: the header cannot be written"):
            codec().encode_outcome(outcome, None, sent=1.0, ttl=None)
        with pytest.raises(SerializationError, match=r"shop\.pay: the header cannot be written"):
            codec().reframe(header(headers={"a": value}), b"[[],{}]")


def test_an_unaccepted_serializer_is_refused_by_the_sender_too() -> None:
    with pytest.raises(MessageRefused, match="'pickle' is not accepted: accept has json, msgpack"):
        codec().encode(header(serializer="pickle"), [[], {}])


# --- compression


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_large_bodies_are_compressed(name: str) -> None:
    one = codec(compression=name, compress_above=100)
    message = one.encode(header(), [["x" * 100], {}])
    assert message.header.compression == name
    assert len(message.frame) < 250
    found, body = codec().open(message.frame)
    assert codec().loads(found, body) == [["x" * 100], {}]


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_threads_may_share_a_codec(name: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    one = codec(compression=name, compress_above=0)

    def there_and_back(number: int) -> bool:
        value = [[f"{number} " * 5000], {}]
        return bool(one.loads(*one.open(one.encode(header(), value).frame)) == value)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(there_and_back, range(64)))


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_compression_does_not_depend_on_the_time(name: str) -> None:
    first, second = (compression.find(name) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.compress(b"x" * 100) == second.compress(b"x" * 100)


def test_small_and_incompressible_bodies_are_left_alone() -> None:
    one = codec(compression="zlib", compress_above=100)
    assert one.encode(header(), [["x" * 50], {}]).header.compression == ""
    noise = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(20))
    message = one.encode(header(serializer="msgpack"), [[noise], {}])
    assert message.header.compression == ""
    assert noise in message.frame


def test_a_header_that_was_compressed_before_is_corrected() -> None:
    message = codec().encode(header(compression="zlib"), [[], {}])
    assert message.header.compression == ""
    assert codec().loads(*codec().open(message.frame)) == [[], {}]


def test_outcomes_are_compressed_too() -> None:
    one = codec(compression="bz2", compress_above=10)
    sent = OutcomeHeader(v=1, id="a1", state=SUCCESS)
    outcome = one.encode_outcome(sent, "x" * 1000, sent=1.0, ttl=None)
    found, body = one.open_outcome(outcome.frame)
    assert found.compression == "bz2"
    assert one.loads(found, body) == "x" * 1000


def test_an_unknown_compression_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="'gzp': did you mean 'gzip'"):
        codec(compression="gzp")


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="the standard library has zstd")
def test_a_missing_zstandard_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    message = codec(compression="zstd", compress_above=0).encode(header(), [["x" * 99], {}])
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'taskline\[zstd\]'"):
        codec(compression="zstd")
    found, body = codec().open(message.frame)
    with pytest.raises(SerializationError, match=r"pip install 'taskline\[zstd\]'"):
        codec().loads(found, body)


def test_a_further_attempt_keeps_the_body_as_it_is() -> None:
    one = codec(compression="zlib", compress_above=10, signing_key="k")
    found, body = one.open(one.encode(header(), [["x" * 100], {}]).frame)
    found.attempt = 2
    again, same = one.open(one.reframe(found, body).frame)
    assert again.attempt == 2
    assert same == body
    assert one.arguments(again, same) == (["x" * 100], {})


# --- signatures


def test_the_signature_line() -> None:
    unsigned = codec().encode(header(), [[1], {}]).frame
    signed = codec(signing_key="s3cret").encode(header(), [[1], {}]).frame
    line, rest = signed.split(b"\n", 1)
    key_id = hashlib.sha256(b"s3cret").hexdigest()[:8]
    digest = hmac.new(b"s3cret", unsigned, "sha256").hexdigest()
    assert rest == unsigned
    assert line.decode() == f"~{key_id}.{digest}"


def test_keys_rotate() -> None:
    old = codec(signing_key="old").encode(header(), [[], {}]).frame
    new = codec(signing_key="new").encode(header(), [[], {}]).frame
    during = codec(signing_key="new", verify_keys=["old"])
    assert during.open(old)[0] == during.open(new)[0] == header()
    after = codec(signing_key="new")
    assert after.open(new)[0] == header()
    with pytest.raises(MessageRefused, match=r"signed with the key .* neither"):
        after.open(old)


def test_a_side_that_only_verifies() -> None:
    reader = codec(verify_keys=["k"])
    assert reader.open(codec(signing_key="k").encode(header(), [[], {}]).frame)[0] == header()
    with pytest.raises(MessageRefused, match="not signed"):
        reader.open(reader.encode(header(), [[], {}]).frame)


def test_unsigned_messages_are_refused_unless_waived() -> None:
    frame = codec().encode(header(), [[], {}]).frame
    with pytest.raises(MessageRefused, match="not signed"):
        codec(signing_key="k").open(frame)
    assert codec(signing_key="k", accept_unsigned=True).open(frame)[0] == header()


def test_a_signature_is_never_ignored() -> None:
    frame = codec(signing_key="k").encode(header(), [[], {}]).frame
    for one in (codec(), codec(accept_unsigned=True), codec(signing_key="x", accept_unsigned=True)):
        with pytest.raises(MessageRefused, match="signed with the key"):
            one.open(frame)


def test_outcomes_are_signed_too() -> None:
    sent = OutcomeHeader(v=1, id="a1", state=SUCCESS)
    outcome = codec(signing_key="k").encode_outcome(sent, 1, sent=1.0, ttl=None)
    assert outcome.frame.startswith(b"~")
    assert codec(verify_keys=["k"]).open_outcome(outcome.frame)[0] == sent
    unsigned = codec().encode_outcome(sent, 1, sent=1.0, ttl=None)
    with pytest.raises(MessageRefused, match="not signed"):
        codec(verify_keys=["k"]).open_outcome(unsigned.frame)


# --- settings that contradict themselves


@pytest.mark.parametrize("name", ["pickle", "cloudpickle", "yaml"])
def test_what_runs_code_needs_a_key_or_a_waiver(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"accept names {name}, which runs code"):
        codec(accept=["json", name])
    codec(accept=["json", name], signing_key="k")
    codec(accept=["json", name], verify_keys=["k"])
    codec(accept=["json", name], accept_unsigned=True)


def test_the_serializer_must_be_accepted() -> None:
    with pytest.raises(ConfigurationError, match="serializer = 'pickle' is not in accept"):
        codec(serializer="pickle", signing_key="k")


def test_accepting_an_unknown_serializer() -> None:
    with pytest.raises(ConfigurationError, match="unknown serializer 'jsno'"):
        codec(accept=["json", "jsno"])


# --- size


def test_too_large_to_send() -> None:
    with pytest.raises(SerializationError, match=r"larger than max_message_size = 1000"):
        codec(max_message_size=1000).encode(header(), [["x" * 1000], {}])
    sent = OutcomeHeader(v=1, id="a1", state=SUCCESS)
    with pytest.raises(SerializationError, match=r"larger than max_message_size = 1000"):
        codec(max_message_size=1000).encode_outcome(sent, "x" * 1000, sent=1.0, ttl=None)


def test_what_nobody_could_decompress_is_not_sent() -> None:
    one = codec(max_message_size=1000, compression="zlib", compress_above=10)
    with pytest.raises(SerializationError, match="larger than max_message_size"):
        one.encode(header(), [["x" * 1000], {}])


def test_the_largest_message_that_is_sent_is_read() -> None:
    for settings in ({}, {"signing_key": "k"}):
        roomy = codec(**settings)
        frame = roomy.encode(header(), [["x" * 100], {}]).frame
        exact = codec(max_message_size=len(frame), **settings)
        assert exact.open(exact.encode(header(), [["x" * 100], {}]).frame)[0] == header()
        tight = codec(max_message_size=len(frame) - 1, **settings)
        with pytest.raises(SerializationError, match="larger than"):
            tight.encode(header(), [["x" * 100], {}])
        with pytest.raises(MessageRefused, match="larger than"):
            tight.open(frame)


def test_the_hot_path_is_short() -> None:
    one = codec()
    message_header = header()
    value = ([1], {})
    calls: list[str] = []

    def profile(frame: Any, event: str, arg: object) -> None:
        if event == "call":
            calls.append(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        frame = one.encode(message_header, value).frame
        sending = len(calls)
        one.arguments(*one.open(frame))
    finally:
        sys.setprofile(None)
    assert sending <= 4, calls
    assert len(calls) - sending <= 5, calls
    assert json.loads(frame.split(b"\n")[1]) == [[1], {}]
