from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import ConfigurationError, NotSupported, TasklineError, TransportError
from taskline.message import Delivery, Message, Outcome
from taskline.queueing import Route
from taskline.registry import Spec
from taskline.testing.cases.transport import ids, letter, message, messages
from taskline.testing.transport_suite import TransportConformance
from taskline.transports import open_transport
from taskline.transports.memory import MemoryTransport
from taskline.transports.routed import RoutedTransport

_numbers = count(1)

ROUTES = {
    "mail": Route("second", "prod.mail.v1", None, None, "mail"),
    "there": Route("second", "there", None, None, "there"),
    "b": Route("second", "prod.b", None, None, "b"),
    "home": Route("", "prod.home", None, None, "home"),
    "c": Route("second", "c", None, None, "graves"),
    "other": Route("second", "mail", None, None, "other"),
    "successors": Route("second", "next", None, None, "successors"),
    "elsewhere": Route("second", "elsewhere", None, None, "elsewhere"),
    "graves": Route("second", "prod.graves", None, None, "graves"),
}


def routed(
    first: Spec, second: Spec, clock: Clock, served: Collection[str] | None = None
) -> RoutedTransport:
    specs = {"": first, "second": second}
    openers = {key: partial(open_transport, spec, clock=clock) for key, spec in specs.items()}
    return RoutedTransport(openers, ROUTES, clock, served)


class TestRouted(TransportConformance):
    """Its queues at two brokers, most of them under other names there."""

    histories = 30

    @pytest.fixture
    def make_transport(self) -> Callable[[Clock], RoutedTransport]:
        name = f"routed-{next(_numbers)}"
        return lambda clock: routed(f"memory://{name}/1", f"memory://{name}/2", clock)


class TestRoutedFiles(TransportConformance):
    """The same at two SQLite files: leases, waking and crowds of several connections."""

    histories = 5

    @pytest.fixture
    def make_transport(self, tmp_path: Path) -> Callable[[Clock], RoutedTransport]:
        first, second = (f"sqlite:///{tmp_path}/{name}.db" for name in ("first", "second"))
        return lambda clock: routed(first, second, clock)


class Flaky(MemoryTransport):
    """Does not answer while its name is in `silent`."""

    silent: set[str] = set()

    def _answer(self) -> None:
        if self.silent:
            raise TransportError("nobody answers")

    def receive(
        self, queues: Sequence[str], limit: int, lease: float, wait: float, consumer: str
    ) -> list[Delivery]:
        self._answer()
        return super().receive(queues, limit, lease, wait, consumer)

    def ack(
        self, deliveries: Sequence[Delivery], outcomes: Sequence[Outcome] = ()
    ) -> list[Delivery]:
        self._answer()
        return super().ack(deliveries, outcomes)

    def extend(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]:
        self._answer()
        return super().extend(deliveries, lease)

    def ping(self) -> None:
        self._answer()
        super().ping()


@pytest.fixture
def flaky(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RoutedTransport]:
    """Its second connector answers unless `Flaky.silent` has something in it."""
    monkeypatch.setattr(Flaky, "silent", set())
    name = request.node.name
    second = {"type": f"{__name__}:Flaky", "name": f"{name}/2"}
    transport = routed(f"memory://{name}/1", second, SYSTEM_CLOCK)
    yield transport
    transport.close()


def test_a_message_waits_at_its_own_broker_under_its_own_name() -> None:
    transport = routed("memory://names/1", "memory://names/2", SYSTEM_CLOCK)
    transport.send([message(queue="mail"), message(queue="plain")])
    assert [each.queue for each in MemoryTransport("names/1").stats()] == ["plain"]
    assert [each.queue for each in MemoryTransport("names/2").stats()] == ["prod.mail.v1"]
    assert [each.queue for each in transport.stats()] == ["mail", "plain"]


def test_what_the_app_has_no_name_for_is_not_shown() -> None:
    MemoryTransport("others/2").send([message(queue="of another app")])
    MemoryTransport("others/1").send([message(queue="mail"), message(queue="plain")])
    transport = routed("memory://others/1", "memory://others/2", SYSTEM_CLOCK)
    assert [each.queue for each in transport.stats()] == ["plain"]


def test_dead_letters_are_kept_under_the_name_that_is_set_and_requeued_from_there() -> None:
    transport = routed("memory://graves/1", "memory://graves/2", SYSTEM_CLOCK)
    transport.send([sent := message(queue="c")])
    (held,) = transport.receive(["c"], 1, 30, 0, "w")
    transport.bury([(held, letter(held))])
    assert ids(transport.dead_letters("graves")) == [sent.header.id]
    assert transport.dead_letters("c") == []
    assert [each.queue for each in MemoryTransport("graves/2").dead_letters()] == ["prod.graves"]
    found = transport.dead_letter(sent.header.id)
    assert found is not None
    assert found.queue == "graves"
    assert transport.requeue([message(sent.header.id, queue="c")]) == [sent.header.id]
    assert ids(transport.receive(["c"], 1, 30, 0, "w")) == [sent.header.id]


def test_all_dead_letters_are_listed_newest_first_in_pages() -> None:
    transport = routed("memory://newest/1", "memory://newest/2", SYSTEM_CLOCK)
    for at, queue in enumerate(["mail", "plain", "mail", "plain"]):
        transport.send([message(f"m{at}", queue=queue)])
        (held,) = transport.receive([queue], 1, 30, 0, "w")
        transport.bury([(held, letter(held, at=float(at)))])
    assert ids(transport.dead_letters()) == ["m3", "m2", "m1", "m0"]
    assert ids(transport.dead_letters(limit=2, offset=1)) == ["m2", "m1"]


@pytest.mark.parametrize("queue", ["mail", "plain"])
def test_one_thread_waits_for_several_brokers_at_once(queue: str, tmp_path: Path) -> None:
    """Woken by either: a wait for one would not end while the message is at the other."""
    transport = routed(f"sqlite:///{tmp_path}/1.db", f"sqlite:///{tmp_path}/2.db", SYSTEM_CLOCK)
    sender = routed(f"sqlite:///{tmp_path}/1.db", f"sqlite:///{tmp_path}/2.db", SYSTEM_CLOCK)
    found: list[Delivery] = []

    def wait() -> None:
        found.extend(transport.receive(["mail", "plain"], 10, 30, 600, "w"))

    waiting = threading.Thread(target=wait, name="test-wait", daemon=True)
    waiting.start()
    sender.send([sent := message(queue=queue)])
    waiting.join(20)
    assert ids(found) == [sent.header.id]
    transport.close()
    sender.close()


def test_no_more_than_the_limit_is_taken_when_several_have_something_at_once() -> None:
    transport = routed("memory://limits/1", "memory://limits/2", SYSTEM_CLOCK)
    found: list[Delivery] = []

    def wait() -> None:
        found.extend(transport.receive(["mail", "plain"], 1, 30, 600, "w"))

    for _ in range(30):
        found.clear()
        waiting = threading.Thread(target=wait, name="test-wait", daemon=True)
        waiting.start()
        transport.send([message(queue="mail"), message(queue="plain")])
        waiting.join(20)
        assert len(found) == 1
        assert transport.ack(found) == []
        rest = transport.receive(["mail", "plain"], 10, 30, 600, "w")
        assert len(rest) == 1
        assert rest[0].lost == 0
        assert transport.ack(rest) == []
    assert not any(each.ready or each.leased for each in transport.stats())
    transport.close()


def test_a_broker_that_does_not_answer_holds_back_no_other_queue(
    flaky: RoutedTransport, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "taskline")
    flaky.send(messages(2, queue="mail"))
    held = flaky.receive(["mail", "plain"], 2, 30, 0, "w")
    Flaky.silent.add("second")
    flaky.send([sent := message(queue="plain")])
    assert ids(flaky.receive(["mail", "plain"], 2, 30, 0, "w")) == [sent.header.id]
    # What cannot be told now is told as soon as it answers.
    assert flaky.ack(held) == []
    assert flaky.extend(held, 30) == []
    assert flaky.receive(["mail", "plain"], 2, 30, 0.01, "w") == []
    with pytest.raises(TransportError, match="nobody answers"):
        flaky.receive(["mail"], 2, 30, 0.01, "w")
    Flaky.silent.clear()
    flaky.send([again := message(queue="mail")])
    assert ids(flaky.receive(["mail", "plain"], 2, 30, 600, "w")) == [again.header.id]
    (stats,) = flaky.stats(["mail"])
    assert (stats.ready, stats.leased) == (0, 1)
    assert [record.getMessage() for record in caplog.records] == [
        "the connector second: nobody answers; trying until it works",
        "the connector second answers again",
    ]


class Slow(MemoryTransport):
    """Answers for a send when it is waited for; refuses those whose names are in `refusing`."""

    refusing: dict[str, TasklineError] = {}
    at_once: set[str] = set()
    """Of these, the ones that refuse when a send is begun."""

    def begin_send(self, messages: Sequence[Message]) -> Callable[[], None]:
        error = self.refusing.get(self.name)
        if error is not None and self.name in self.at_once:
            raise error

        def wait() -> None:
            if error is not None:
                raise error
            self.send(messages)

        return wait


SLOW = {
    "one": Route("1", "one", None, None, "one"),
    "two": Route("2", "two", None, None, "two"),
    "three": Route("3", "three", None, None, "three"),
}


@pytest.fixture
def slow(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RoutedTransport]:
    """Three connectors that have a queue each."""
    monkeypatch.setattr(Slow, "refusing", {})
    monkeypatch.setattr(Slow, "at_once", set())
    openers = {
        key: partial(
            open_transport,
            {"type": f"{__name__}:Slow", "name": f"{request.node.name}/{key}"},
            clock=SYSTEM_CLOCK,
        )
        for key in ("", "1", "2", "3")
    }
    transport = RoutedTransport(openers, SLOW, SYSTEM_CLOCK)
    yield transport
    transport.close()


def refuse(
    request: pytest.FixtureRequest, key: str, error: TasklineError, *, at_once: bool
) -> None:
    name = f"{request.node.name}/{key}"
    Slow.refusing[name] = error
    if at_once:
        Slow.at_once.add(name)


def ready(transport: RoutedTransport) -> list[str]:
    return [each.queue for each in transport.stats() if each.ready]


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("key", "others"), [("1", ["three", "two"]), ("2", ["one", "three"]), ("3", ["one", "two"])]
)
def test_a_broker_that_refuses_its_messages_keeps_none_from_the_others(
    request: pytest.FixtureRequest,
    slow: RoutedTransport,
    key: str,
    others: list[str],
    at_once: bool,
) -> None:
    """The error comes when the others have answered: what they have is stored by then."""
    refuse(request, key, TransportError("the disk is full", retryable=False), at_once=at_once)
    wait = slow.begin_send([message(queue=queue) for queue in SLOW])
    with pytest.raises(
        TransportError,
        match=f"^1 of 3 connectors did not take their messages: {key}: the disk is full$",
    ) as caught:
        wait()
    assert not caught.value.retryable
    assert ready(slow) == others


@pytest.mark.parametrize("lasting", [True, False])
def test_all_that_refuse_are_named_and_a_repetition_must_help_with_each(
    request: pytest.FixtureRequest, slow: RoutedTransport, lasting: bool
) -> None:
    refuse(request, "1", TransportError("nobody answers"), at_once=False)
    refuse(request, "3", TransportError("it is full", retryable=not lasting), at_once=True)
    with pytest.raises(TransportError, match=r"2 of 3 .*: 1: nobody answers; 3: it is full") as it:
        slow.send([message(queue=queue) for queue in SLOW])
    assert it.value.retryable is not lasting
    assert ready(slow) == ["two"]


@pytest.mark.parametrize("at_once", [True, False])
def test_the_error_of_a_send_to_one_broker_is_that_broker_s_own(
    request: pytest.FixtureRequest, slow: RoutedTransport, at_once: bool
) -> None:
    refuse(request, "2", ConfigurationError("no such topic"), at_once=at_once)
    with pytest.raises(ConfigurationError, match=r"^no such topic$"):
        slow.send([message(queue="two")])
    slow.send([message(queue="one")])


def test_what_is_owed_is_told_when_it_is_closed(flaky: RoutedTransport) -> None:
    flaky.send(messages(1, queue="mail"))
    held = flaky.receive(["mail"], 2, 30, 0, "w")
    Flaky.silent.add("second")
    assert flaky.ack(held) == []
    Flaky.silent.clear()
    flaky.close()
    assert not any(
        each.leased
        for each in MemoryTransport("test_what_is_owed_is_told_when_it_is_closed/2").stats()
    )


def test_a_worker_needs_the_brokers_of_its_own_queues_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Flaky, "silent", {"second"})
    second = {"type": f"{__name__}:Flaky", "name": "alone/2"}
    routed("memory://alone/1", second, SYSTEM_CLOCK, ["plain", "home"]).ping()
    with pytest.raises(TransportError, match="nobody answers"):
        routed("memory://alone/1", second, SYSTEM_CLOCK, ["plain", "mail"]).ping()


def test_a_transaction_is_with_the_first_broker_alone() -> None:
    transport = routed("memory://within/1", "memory://within/2", SYSTEM_CLOCK)
    with pytest.raises(NotSupported, match="a queue of another connector"):
        transport.send_within(object(), [message(queue="mail")])


def test_its_threads_end() -> None:
    before = threading.enumerate()
    transport = routed("memory://ends/1", "memory://ends/2", SYSTEM_CLOCK)
    transport.receive(["mail", "plain"], 1, 30, 0.01, "w")
    ending = [each for each in threading.enumerate() if each not in before]
    assert {each.name for each in ending} == {"taskline-wait-broker", "taskline-wait-second"}
    transport.close()
    for thread in ending:
        thread.join(20)
        assert not thread.is_alive()
