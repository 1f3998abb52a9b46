"""How the seam is said in Disque's commands, on the stand-in for a server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

pytest.importorskip("redis", reason="redis-py is not installed: pip install 'taskline[disque]'")

from disque_server import DisqueServer

from taskline import Taskline
from taskline.clock import SYSTEM_CLOCK, Clock, ManualClock
from taskline.errors import ConfigurationError, NotSupported, TransportError
from taskline.message import DeadLetter, Delivery, Header, Message, join
from taskline.worker import Worker, WorkerOptions
from taskline_contrib.disque import DisqueTransport, letters

Open = Callable[..., DisqueTransport]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def serve() -> Iterator[Callable[[Clock], DisqueServer]]:
    made: list[DisqueServer] = []

    def serve(clock: Clock) -> DisqueServer:
        made.append(DisqueServer(clock))
        return made[-1]

    yield serve
    for each in made:
        each.close()


@pytest.fixture
def server(serve: Callable[[Clock], DisqueServer], clock: ManualClock) -> DisqueServer:
    return serve(clock)


@pytest.fixture
def open_to(clock: ManualClock) -> Iterator[Open]:
    """Opens a transport to these servers."""
    made: list[DisqueTransport] = []

    def open_to(*servers: DisqueServer, clock: Clock = clock, **options: Any) -> DisqueTransport:
        address = ",".join(f"127.0.0.1:{each.port}" for each in servers)
        made.append(DisqueTransport(address, clock, **options))
        return made[-1]

    yield open_to
    for each in made:
        each.close()


@pytest.fixture
def transport(open_to: Open, server: DisqueServer) -> DisqueTransport:
    return open_to(server)


def message(
    id: str = "order-42", queue: str = "mail", *, eta: float | None = None, frame: bytes = b"frame"
) -> Message:
    return Message(Header(v=1, id=id, task="t", queue=queue, sent=0.0, eta=eta), frame)


def take(transport: DisqueTransport, *queues: str, limit: int = 100) -> list[Delivery]:
    return transport.receive(queues or ["mail"], limit, 30, 0, "w")


def letter(delivery: Delivery, reason: str = "no") -> DeadLetter:
    return DeadLetter(
        id=delivery.id, queue=delivery.queue, reason=reason, at=1.0, frame=delivery.frame
    )


def sent(server: DisqueServer, name: str) -> list[list[bytes]]:
    return [words for words in server.store.commands if words[0].decode().lower() == name]


# ADDJOB


def test_a_job_is_added_with_retry_ttl_and_replicate(
    open_to: Open, server: DisqueServer, clock: ManualClock
) -> None:
    open_to(server, retry=20, ttl=1000, timeout=700).send(
        [message(), message("later", eta=clock.time() + 99.5)]
    )
    first, second = sent(server, "addjob")
    assert first[1] == b"mail"
    assert first[2] == b'["taskline","order-42",0,0,null]\nframe'
    assert first[3:] == b"700 REPLICATE 1 RETRY 20 TTL 1000".split()
    # A delay in whole seconds, never too early; WORKING is still allowed after it.
    assert second[3:] == b"700 REPLICATE 1 RETRY 20 TTL 1200 DELAY 100".split()


def test_all_of_a_batch_or_none_is_sent(open_to: Open, server: DisqueServer) -> None:
    transport = open_to(server, replicate=2)
    with pytest.raises(TransportError, match=r"127\.0\.0\.1.*NOREPL") as refused:
        transport.send([message("a"), message("b")])
    assert refused.value.retryable
    assert server.store.jobs == {}


def test_what_was_stored_before_an_error_is_taken_back(
    transport: DisqueTransport, server: DisqueServer
) -> None:
    server.store.paused.add(b"closed")
    with pytest.raises(TransportError, match="PAUSED") as refused:
        transport.send([message("a"), message("b", "closed"), message("c")])
    assert refused.value.retryable
    assert len(sent(server, "addjob")) == 3
    assert server.store.jobs == {}


# GETJOB and the lease


def test_receiving_begins_a_lease_of_the_full_retry(
    transport: DisqueTransport, server: DisqueServer, clock: ManualClock
) -> None:
    """GETJOB alone leaves the time since the job was queued on the job's account."""
    transport.send([message()])
    clock.advance(29)
    (held,) = take(transport)
    clock.advance(29)
    assert take(transport) == []
    assert transport.ack([held]) == []
    assert server.store.jobs == {}


def test_a_lease_ends_after_retry_and_counts_as_lost(
    transport: DisqueTransport, clock: ManualClock
) -> None:
    transport.send([message()])
    (old,) = take(transport)
    assert transport.recover("w", [old.id]) == 0
    clock.advance(29.5)
    assert take(transport) == []
    clock.advance(1)
    (new,) = take(transport)
    assert (new.id, new.deliveries, new.lost) == ("order-42", 2, 1)
    assert transport.ack([old]) == [old]
    assert transport.release([old]) == [old]
    assert transport.ack([new]) == []


def test_working_renews_by_retry(transport: DisqueTransport, clock: ManualClock) -> None:
    transport.send([message()])
    (held,) = take(transport)
    for _ in range(10):
        clock.advance(20)
        assert transport.extend([held], 5) == []
        assert take(transport) == []
    clock.advance(31)
    assert transport.extend([held], 5) == [held]
    assert len(take(transport)) == 1


def test_at_half_of_its_ttl_a_message_cannot_be_held_any_longer(
    open_to: Open, server: DisqueServer, clock: ManualClock
) -> None:
    transport = open_to(server, retry=30, ttl=100)
    transport.send([message()])
    (held,) = take(transport)
    clock.advance(25)
    assert transport.extend([held], 30) == []
    clock.advance(26)
    assert transport.extend([held], 30) == [held]
    clock.advance(5)
    # Still handed over, and done in the time that it has left.
    (again,) = take(transport)
    assert transport.ack([again]) == []


def test_a_lease_whose_renewal_comes_too_late_is_refused(
    open_to: Open, server: DisqueServer
) -> None:
    transport = open_to(server, retry=10)
    transport.send([message()])
    with pytest.raises(TransportError, match=r"lease of 30 s.*retry=10 s: set \?retry=30") as wrong:
        transport.receive(["mail"], 1, 30, 0, "w")
    assert not wrong.value.retryable
    assert len(transport.receive(["mail"], 1, 29, 0, "w")) == 1


def test_queues_are_emptied_in_their_order(transport: DisqueTransport) -> None:
    """One GETJOB of several queues would take from each in turn."""
    transport.send([message(f"{queue}{n}", queue) for n in range(3) for queue in ("a", "b")])
    assert [each.id for each in take(transport, "b", "a", limit=5)] == [
        "b0",
        "b1",
        "b2",
        "a0",
        "a1",
    ]


def test_a_job_acknowledged_between_getjob_and_working_is_not_delivered(
    transport: DisqueTransport, server: DisqueServer
) -> None:
    transport.send([message()])
    server.store.failing["working"] = "NOJOB Job not known in the context of this node."
    assert take(transport) == []


# NACK, and what Disque has no command for


def test_release_is_a_nack_and_does_not_count_as_lost(
    transport: DisqueTransport, server: DisqueServer
) -> None:
    transport.send([message()])
    assert transport.release(take(transport)) == []
    assert len(sent(server, "nack")) == 1
    (again,) = take(transport)
    assert (again.deliveries, again.lost) == (2, 0)


def test_a_release_with_a_delay_keeps_what_was_counted(
    transport: DisqueTransport, clock: ManualClock
) -> None:
    transport.send([message()])
    take(transport)
    clock.advance(31)
    (held,) = take(transport)
    assert transport.release([held], 7.5) == []
    clock.advance(7.5)
    assert take(transport) == []
    clock.advance(0.5)
    (again,) = take(transport)
    assert (again.deliveries, again.lost) == (3, 1)


def test_the_successor_is_stored_before_the_message_is_acknowledged(
    transport: DisqueTransport, server: DisqueServer
) -> None:
    transport.send([message()])
    held = take(transport)
    server.store.failing["ackjob"] = "ERR the connection was cut here"
    with pytest.raises(TransportError):
        transport.replace([(held[0], message(frame=b"2"))])
    assert [each.frame for each in take(transport)] == [b"2"]
    assert len(server.store.jobs) == 2


def test_a_dead_letter_is_stored_before_the_message_is_acknowledged(
    transport: DisqueTransport, server: DisqueServer
) -> None:
    transport.send([message()])
    (held,) = take(transport)
    server.store.failing["ackjob"] = "ERR the connection was cut here"
    with pytest.raises(TransportError):
        transport.bury([(held, letter(held))])
    assert transport.dead_letter("order-42") == letter(held)
    assert len(server.store.jobs) == 2
    # It comes again, and of the letters then the newest is shown.
    server.store.failing.clear()
    assert transport.bury([(held, letter(held, "again"))]) == []
    assert len(transport.dead_letters("mail")) == 1
    assert transport.purge_dead(["order-42"]) == 1
    assert server.store.jobs == {}


def test_dead_letters_lie_in_a_queue_of_their_own_for_years(
    transport: DisqueTransport, server: DisqueServer, clock: ManualClock
) -> None:
    transport.send([message()])
    (held,) = take(transport)
    transport.bury([(held, letter(held))])
    (job,) = server.store.jobs.values()
    assert job.queue == b"taskline:dead:mail"
    clock.advance(5 * 365 * 86400)
    assert transport.dead_letters() == [letter(held)]
    assert [(each.queue, each.ready, each.dead) for each in transport.stats()] == [("mail", 0, 1)]


def test_of_two_who_requeue_one_succeeds(
    open_to: Open, server: DisqueServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = open_to(server), open_to(server)
    one.send([message()])
    (held,) = take(one)
    one.bury([(held, letter(held))])
    found = letters.find(two._nodes, ["order-42"])
    assert one.requeue([message(frame=b"one")]) == ["order-42"]
    monkeypatch.setattr(letters, "find", lambda nodes, ids: found)
    assert two.requeue([message(frame=b"two")]) == []
    (again,) = take(one)
    assert (again.frame, again.deliveries) == (b"one", 2)
    assert len(server.store.jobs) == 1


def test_a_letter_outlives_the_one_who_dies_as_he_requeues_it(
    transport: DisqueTransport, server: DisqueServer, clock: ManualClock
) -> None:
    transport.send([message()])
    (held,) = take(transport)
    transport.bury([(held, letter(held))])
    server.store.failing["deljob"] = "ERR the connection was cut here"
    with pytest.raises(TransportError):
        transport.requeue([message()])
    server.store.failing.clear()
    assert transport.dead_letter("order-42") is not None
    assert take(transport) == []


# looking


def test_purging_keeps_what_is_held_and_what_is_dead(
    transport: DisqueTransport, clock: ManualClock
) -> None:
    transport.send([message(str(number)) for number in range(5)])
    held, dead = take(transport, limit=2)
    transport.bury([(dead, letter(dead))])
    transport.send([message("later", eta=clock.time() + 1000), message("b", "other")])
    assert transport.purge("mail") == 4
    assert transport.purge("mail") == 0
    assert transport.ack([held]) == []
    assert transport.dead_letter(dead.id) is not None
    assert [each.id for each in take(transport, "other")] == ["b"]


def test_peek_tells_ready_delayed_and_held_apart(
    transport: DisqueTransport, clock: ManualClock
) -> None:
    transport.send([message("held")])
    take(transport)
    transport.send([message("later", eta=clock.time() + 10), message("due", eta=clock.time() + 5)])
    clock.advance(6)
    (due,) = take(transport)
    transport.send([message("ready")])
    shown = [(each.id, each.state, each.deliveries) for each in transport.peek("mail")]
    assert shown == [
        ("ready", "ready", 0),
        ("later", "delayed", 0),
        ("held", "leased", 1),
        ("due", "leased", 1),
    ]
    assert [each.due for each in transport.peek("mail")[1:]] == pytest.approx(
        [clock.time() + 4, clock.time() + 24, clock.time() + 30], abs=0.01
    )
    assert transport.ack([due]) == []


def test_a_message_cannot_be_deleted_by_its_id(transport: DisqueTransport) -> None:
    with pytest.raises(NotSupported):
        transport.delete(["order-42"])


# jobs of others


def test_a_job_that_another_client_added_is_its_frame(
    transport: DisqueTransport, server: DisqueServer
) -> None:
    header = Header(v=1, id="order-7", task="t", queue="mail", sent=0.0, deliveries=3)
    frame = join(header, b"[[], {}]")
    job_id = transport._nodes.call("ADDJOB", "mail", b"no frame", 0)
    transport._nodes.call("ADDJOB", "mail", frame, 0)
    plain, call = take(transport)
    assert (plain.id, plain.frame) == (job_id.decode(), b"no frame")
    assert (call.id, call.frame, call.deliveries) == ("order-7", frame, 4)


# connections


def test_a_wait_is_interrupted_by_a_job(
    serve: Callable[[Clock], DisqueServer], open_to: Open
) -> None:
    server = serve(SYSTEM_CLOCK)
    transport = open_to(server, clock=SYSTEM_CLOCK)
    taken: list[list[Delivery]] = []
    waiting = threading.Thread(
        target=lambda: taken.append(transport.receive(["mail"], 1, 30, 600, "w"))
    )
    waiting.start()
    while not any(b"TIMEOUT" in words for words in list(server.store.commands)):
        waiting.join(0.01)
    transport.interrupt()
    waiting.join(4)
    assert taken == [[]]
    assert server.store.jobs == {}


def test_a_lost_or_leaving_node_is_given_up_for_the_next(
    serve: Callable[[Clock], DisqueServer], open_to: Open, clock: ManualClock
) -> None:
    one, two = serve(clock), serve(clock)
    transport = open_to(one, two)
    transport.ping()
    one.store.failing["getjob"] = "LEAVING this node is leaving the cluster"
    with pytest.raises(TransportError, match="LEAVING") as left:
        take(transport)
    assert left.value.retryable
    transport.send([message()])
    assert len(two.store.jobs) == 1
    two.close()
    with pytest.raises(TransportError) as lost:
        transport.ping()
    assert lost.value.retryable
    transport.ping()
    assert transport.info()["address"] == f"disque://127.0.0.1:{one.port}"


def test_a_cut_connection_is_an_error_that_may_pass(
    transport: DisqueTransport, server: DisqueServer
) -> None:
    transport.send([message()])
    server.store.failing["addjob"] = "CUT"
    with pytest.raises(TransportError, match=r"disque://127\.0\.0\.1") as lost:
        transport.send([message("b")])
    assert lost.value.retryable
    server.cut()
    assert [each.id for each in take(transport)] == ["order-42"]


def test_the_password_is_sent_and_not_shown(server: DisqueServer, clock: ManualClock) -> None:
    transport = DisqueTransport.from_spec(f"disque://:secret@127.0.0.1:{server.port}", clock)
    transport.ping()
    assert sent(server, "auth")[-1][-1] == b"secret"
    assert "secret" not in str(transport.info())
    transport.close()
    wrong = DisqueTransport.from_spec(f"disque://:other@127.0.0.1:{server.port}", clock)
    with pytest.raises(TransportError) as refused:
        wrong.ping()
    assert "other" not in str(refused.value)
    wrong.close()


@pytest.mark.parametrize(
    ("url", "about"),
    [
        ("disque://host?retry=0", "retry=0"),
        ("disque://host?retry=50&ttl=50", "ttl=50"),
        ("disque://host?retry=soon", "retry='soon'"),
        ("disque://host?lease=5", "no option 'lease'"),
        ("disque://host:port", "the disque broker URL is wrong"),
    ],
)
def test_wrong_options_are_refused(url: str, about: str, clock: ManualClock) -> None:
    with pytest.raises(ConfigurationError, match=about):
        DisqueTransport.from_spec(url, clock)


def test_the_default_port_is_disques() -> None:
    assert DisqueTransport.from_spec("disque://", SYSTEM_CLOCK)._nodes.address.endswith(":7711")


def test_a_worker_runs_tasks(serve: Callable[[Clock], DisqueServer]) -> None:
    server = serve(SYSTEM_CLOCK)
    address = f"127.0.0.1:{server.port}"
    broker = {"type": "taskline_contrib.disque:DisqueTransport", "address": address}
    app = Taskline("shop", broker=broker, backend="memory://disque")
    failed = []

    @app.task(name="shop.add", retry={"max": 1, "wait": 0})
    def add(one: int, other: int) -> int:
        if not failed:
            failed.append(True)
            raise ValueError("the first attempt")
        return one + other

    worker = Worker(app, WorkerOptions(grace=5))
    worker.start()
    try:
        assert add.delay(1, 2).get(timeout=20) == 3
    finally:
        worker.stop()
        app.close()
    assert failed


def test_an_interrupt_that_meets_the_end_of_the_transport_is_none(
    transport: DisqueTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`close`, by another thread, closes the buffer from which the answer is read."""

    def execute(pipeline: Any, raise_on_error: bool) -> list[Any]:
        transport.close()
        raise ValueError("I/O operation on closed file.")

    monkeypatch.setattr(redis.client.Pipeline, "execute", execute)
    monkeypatch.setattr(transport, "_blocked", True)
    transport.interrupt()
