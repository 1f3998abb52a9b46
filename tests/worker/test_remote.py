"""What all workers of an app are told, and heed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from workbench import spy_on, until, working

from taskline import Taskline
from taskline.clock import ManualClock
from taskline.control import State, States
from taskline.control.documents import why_no_keys
from taskline.errors import ConfigurationError, MessageRefused, SerializationError
from taskline.worker.remote import LOOK_EVERY, Remote


def pausing(*queues: str) -> Any:
    return lambda state: msgspec.structs.replace(state, paused=state.paused | {*queues})


def told(app: Taskline) -> Remote:
    remote = Remote(app)
    remote.open(app.require_backend())
    return remote


def test_the_state_is_shared_and_grows_newer(app: Taskline, make_app: Any) -> None:
    states, others = States(app), States(make_app())
    assert states.get() == State()
    first = states.change(pausing("mail"))
    assert others.get() == first
    second = others.change(lambda state: msgspec.structs.replace(state, rates={"add": "10/s"}))
    assert second.version > first.version
    assert states.get() == second
    assert (second.paused, second.rates) == ({"mail"}, {"add": "10/s"})


def test_apps_of_other_names_have_another(make_memory_app: Any) -> None:
    app = make_memory_app()
    States(app).change(pausing("mail"))
    other = Taskline("other", broker=app.settings.broker, backend=app.settings.backend)
    assert States(other).get() == State()
    other.close()


def test_a_worker_learns_of_changes(make_memory_app: Any) -> None:
    clock = ManualClock()
    app = make_memory_app(clock=clock)
    States(app).change(pausing("mail"))
    remote = told(app)
    assert remote.state.paused == {"mail"}, "before the first message"
    remote.look(clock.monotonic(), False)
    States(app).change(pausing("video"))
    assert remote.look(clock.monotonic(), False).paused == {"mail"}, "it has just looked"
    clock.advance(LOOK_EVERY)
    assert remote.look(clock.monotonic(), False).paused == {"mail", "video"}
    app.require_backend().keys().delete(States(app).key)
    clock.advance(LOOK_EVERY)
    assert remote.look(clock.monotonic(), False) == State()


def test_a_look_is_one_call(make_memory_app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    app = make_memory_app(clock=clock)
    remote, keys = told(app), app.require_backend().keys()
    calls: Counter[str] = Counter()
    for name in ("get", "set", "delete", "ttl", "increment", "acquire"):
        real = getattr(type(keys), name)

        def counted(*args: Any, name: str = name, real: Any = real, **kwargs: Any) -> Any:
            calls[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(type(keys), name, counted)
    for _ in range(1000):
        clock.advance(0.01)
        remote.look(clock.monotonic(), False)
    assert calls == {"get": 11}, "ten seconds"


def test_what_is_not_signed_is_not_heeded(
    make_memory_app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    app = make_memory_app(signing_key="secret", clock=clock)
    stranger = make_memory_app(clock=clock)
    remote = told(app)
    States(app).change(pausing("mail"))
    clock.advance(1.0)
    assert remote.look(clock.monotonic(), False).paused == {"mail"}
    keys = app.require_backend().keys()
    signed = keys.get(States(app).key)
    assert signed is not None
    keys.delete(States(app).key)
    States(stranger).change(pausing("video"))
    for _ in range(3):
        clock.advance(1.0)
        assert remote.look(clock.monotonic(), False).paused == {"mail"}
    assert caplog.text.count("is not heeded: the message is not signed") == 1
    with pytest.raises(MessageRefused, match="not signed"):
        States(app).get()


def test_what_is_older_is_not_heeded(
    make_memory_app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    app = make_memory_app(signing_key="secret", clock=clock)
    remote, keys = told(app), app.require_backend().keys()
    States(app).change(pausing("mail"))
    old = keys.get(States(app).key)
    assert old is not None
    States(app).change(lambda state: msgspec.structs.replace(state, paused=frozenset()))
    clock.advance(1.0)
    assert not remote.look(clock.monotonic(), False).paused
    keys.set(States(app).key, old, None)
    clock.advance(1.0)
    assert not remote.look(clock.monotonic(), False).paused
    assert "older than what was told before" in caplog.text


def test_a_document_belongs_to_its_key(memory_app: Taskline) -> None:
    documents = States(memory_app).documents
    frame = documents.frame("taskline.state:other", State())
    with pytest.raises(MessageRefused, match="is another message"):
        documents.read(States(memory_app).key, frame, State)
    with pytest.raises(SerializationError, match="Expected `object`"):
        documents.read("here", documents.frame("here", [1]), State)


def test_without_keys_there_is_none() -> None:
    app = Taskline("bare", broker="memory://", backend=None)
    assert why_no_keys(app) == "has no result backend"
    with pytest.raises(ConfigurationError, match=r"the app bare has no result backend, by which"):
        States(app).get()
    with working(app) as worker:
        assert worker.io.state == State()


def test_a_worker_knows_it_in_time(app: Taskline) -> None:
    States(app).change(pausing("mail"))
    with working(app) as worker:
        assert worker.io.state.paused == {"mail"}
        States(app).change(pausing("video"))
        until(lambda: worker.io.state.paused == {"mail", "video"})


def test_a_backend_out_of_reach_is_waited_for(memory_app: Taskline) -> None:
    _, backend = spy_on(memory_app)
    States(memory_app).change(pausing("mail"))
    backend.faults["keys"] = ["before", "before"]
    with working(memory_app) as worker:
        assert worker.io.state.paused == {"mail"}
