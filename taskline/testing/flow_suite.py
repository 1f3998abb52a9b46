"""The conformance suite for workflows: a transport with a backend, as an app uses both.

    class TestPigeons(WorkflowConformance):
        @pytest.fixture
        def make_app(self, tmp_path):
            return lambda **settings: Taskline("test", broker=…, backend=…, **settings)

All apps of one test share an empty store. Workers are turned by hand, so that one can be
killed between any two calls that it makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from taskline.app import Taskline
from taskline.errors import ResultTimeout, TaskExpired, TaskRevoked
from taskline.message import EXPIRED, FAILURE, PENDING, REVOKED, STARTED, SUCCESS
from taskline.testing.canvas import CANVAS, Desk, graph
from taskline.testing.faults import CopyingTransport, RepeatingTransport
from taskline.testing.stepping import Fate, Hand, Killed
from taskline.workflows import (
    FlowResult,
    chain,
    chord,
    group,
)

MakeApp = Callable[..., Taskline]


class WorkflowConformance:
    """Subclass it as `Test…` and override the fixture `make_app`."""

    @pytest.fixture
    def make_app(self) -> MakeApp:
        raise NotImplementedError("override make_app: a function that opens an app")

    @pytest.fixture
    def desk(self, make_app: MakeApp) -> Iterator[Desk]:
        with make_app() as app:
            yield Desk(app)

    def finish(self, desk: Desk) -> None:
        """Let a worker do all there is to do."""
        worker = Hand(desk.app)
        worker.work()
        worker.close()

    @pytest.mark.parametrize("name", CANVAS)
    def test_values(self, desk: Desk, name: str) -> None:
        build, value = CANVAS[name]
        result = build(desk).delay()
        assert result.state in (STARTED, SUCCESS)
        self.finish(desk)
        assert result.get(timeout=10) == value
        assert result.state == SUCCESS
        assert FlowResult(desk.app, result.id).get(timeout=10) == value
        assert set(desk.ran.values()) <= {1}
        done, total, failed = result.progress()
        assert (done, failed) == (total, 0)

    # Exactly once

    @pytest.mark.parametrize("moment", ["before", "after"])
    @pytest.mark.parametrize("name", ["chord", "within", "each", "graph"])
    def test_a_worker_may_die_at_any_point(self, make_app: MakeApp, name: str, moment: str) -> None:
        build, value = CANVAS[name]
        number, died = 1, True
        while died:
            with make_app(queue=f"q{number}") as app:
                desk = Desk(app)
                result = build(desk).delay()
                died, lost = self._kill_once(desk, Fate(number, moment))
                self.finish(desk)
                assert result.get(timeout=10) == value, f"killed {moment} call {number}"
                twice = {key for key, runs in desk.ran.items() if runs > 1}
                assert twice <= lost, f"killed {moment} call {number}"
                assert all(runs <= 2 for runs in desk.ran.values())
            number += 1
        assert number > 8, "it was killed at every call that the workflow needs"

    def _kill_once(self, desk: Desk, fate: Fate) -> tuple[bool, set[str]]:
        """Work until fate comes: whether it came, and the ids of what the worker held then."""
        worker = Hand(desk.app, "victim", fate=fate)
        try:
            worker.work()
        except Killed:
            held = worker.held
            worker.bury()
            return True, held
        worker.close()
        return False, set()

    @pytest.mark.parametrize("name", [name for name in CANVAS if name != "hundred"])
    def test_every_message_is_repeated(self, desk: Desk, name: str) -> None:
        build, value = CANVAS[name]
        result = build(desk).delay()
        transport = RepeatingTransport(desk.app.open_transport())
        worker = Hand(desk.app, transport=transport)
        worker.work(5000)
        worker.close()
        assert result.get(timeout=10) == value
        assert transport.repeated
        assert set(desk.ran.values()) <= {1}, "no step ran again"

    @pytest.mark.parametrize("name", ["chord", "within", "nested", "each", "graph"])
    def test_a_broker_that_keeps_copies(self, desk: Desk, name: str) -> None:
        build, value = CANVAS[name]
        opened = desk.app.open_transport
        copying = CopyingTransport(opened())
        desk.app.send = copying.send  # type: ignore[method-assign]
        result = build(desk).delay()
        for worker in [Hand(desk.app, f"w{n}", transport=CopyingTransport(opened())) for n in "ab"]:
            worker.work(5000)
            worker.close()
        copying.close()
        assert result.get(timeout=10) == value
        assert set(desk.ran.values()) <= {1}, "no copy ran"

    def test_starting_twice_under_one_id_is_starting_once(self, desk: Desk) -> None:
        step = chord([desk.add.s(n, n) for n in range(3)], desk.total.s())
        first, second = (step.apply_async(task_id="mine") for _ in range(2))
        self.finish(desk)
        step.apply_async(task_id="mine")
        self.finish(desk)
        assert first.get(timeout=10) == second.get(timeout=10) == 6
        assert set(desk.ran.values()) == {1}

    # Failure

    def test_stop(self, desk: Desk) -> None:
        desk.broken.add("b")
        result = chain(
            group(desk.step.s("a"), desk.step.s("b")), desk.count.s(), desk.after.s("c")
        ).delay()
        self.finish(desk)
        assert result.state == FAILURE
        with pytest.raises(ValueError, match="b"):
            result.get(timeout=10)
        assert desk.log == ["a", "b"]
        assert result.progress() == (1, 4, 1)

    def test_a_failed_step_that_is_mended_and_requeued_goes_on(self, desk: Desk) -> None:
        desk.broken.add("b")
        result = chain(
            desk.step.s("0"),
            group(desk.after.s("a"), desk.after.s("b") | desk.after.s("b2")),
            desk.count.s(),
            desk.after.s("c"),
        ).delay()
        self.finish(desk)
        assert result.state == FAILURE
        desk.broken.clear()
        assert len(desk.app.dead.requeue(desk.app.dead.find())) == 1
        again = FlowResult[str](desk.app, result.id)
        assert again.state == STARTED
        self.finish(desk)
        assert again.get(timeout=10) == "c"
        assert again.state == SUCCESS
        assert desk.log == ["0", "a", "b", "b", "b2", "count", "c"]
        assert again.progress() == (5, 5, 0)

    @pytest.mark.parametrize("moment", ["before", "after"])
    def test_a_failed_step_can_be_resumed_wherever_its_worker_died(
        self, make_app: MakeApp, moment: str
    ) -> None:
        number, died = 1, True
        while died:
            with make_app(queue=f"q{number}") as app:
                desk = Desk(app)
                desk.broken.add("b")
                result = chord([desk.step.s("a"), desk.step.s("b")], desk.count.s()).delay()
                died, _ = self._kill_once(desk, Fate(number, moment))
                self.finish(desk)
                assert result.state == FAILURE, f"killed {moment} call {number}"
                desk.broken.clear()
                assert result.resume() == [f"{result.id}-0-1"], f"killed {moment} call {number}"
                self.finish(desk)
                assert result.get(timeout=10) == "2 of which 0 failed"
                assert desk.log.count("count") == 1
            number += 1

    def test_resume(self, desk: Desk) -> None:
        desk.broken.update("ab")
        result = chord(
            [desk.step.s("a"), desk.step.s("b"), desk.step.s("c")], desk.count.s()
        ).delay()
        self.finish(desk)
        desk.broken.clear()
        assert len(result.resume()) == 2
        self.finish(desk)
        assert result.get(timeout=10) == "3 of which 0 failed"
        assert desk.ran[f"{result.id}-1"] == 1

    def test_continue(self, desk: Desk) -> None:
        desk.broken.add("b")
        result = chain(
            group(desk.step.s("a"), desk.step.s("b"), desk.step.s("b") | desk.after.s("never")),
            desk.count.s(),
        ).apply_async(on_failure="continue")
        self.finish(desk)
        assert result.get(timeout=10) == "3 of which 2 failed"
        assert "never" not in desk.log

    def test_continue_passes_over_what_would_take_a_failed_result(self, desk: Desk) -> None:
        desk.broken.add("b")
        flow = desk.app.workflow(on_failure="continue")
        flow.step("a", desk.step.s("a"))
        flow.step("b", desk.step.s("b"))
        flow.step("c", desk.after.s("c"), takes="b")
        flow.step("d", desk.step.si("d"), after=["a", "c"])
        result = flow.delay()
        self.finish(desk)
        assert desk.log == ["a", "b", "d"]
        assert result.get(timeout=10) == "d"

    def test_compensate(self, desk: Desk) -> None:
        desk.broken.add("d")
        result = chain(
            desk.step.s("a").undo(desk.undo.s()),
            desk.after.s("b"),
            group(desk.after.s("c").undo(desk.undo.s())),
            desk.after.s("d").undo(desk.undo.s()),
            desk.after.s("e").undo(desk.undo.s()),
        ).apply_async(on_failure="compensate")
        self.finish(desk)
        assert result.state == FAILURE
        assert desk.log == ["a", "b", "c", "d", "undo c", "undo a"]
        assert result.compensation.get(timeout=10) is None

    @pytest.mark.parametrize("moment", ["before", "after"])
    def test_compensation_survives_the_death_of_its_workers(
        self, make_app: MakeApp, moment: str
    ) -> None:
        number, died = 1, True
        while died:
            with make_app(queue=f"q{number}") as app:
                desk = Desk(app)
                desk.broken.add("c")
                members = [desk.after.s(name).undo(desk.undo.s()) for name in "bcd"]
                result = chain(desk.step.s("a").undo(desk.undo.s()), group(members)).apply_async(
                    on_failure="compensate"
                )
                died, lost = self._kill_once(desk, Fate(number, moment))
                self.finish(desk)
                assert result.state == FAILURE
                undone = [line for line in desk.log if line.startswith("undo")]
                assert set(undone) == {"undo a", "undo b", "undo d"}, f"{moment} call {number}"
                twice = {key for key, runs in desk.ran.items() if runs > 1}
                assert twice <= lost, f"killed {moment} call {number}"
            number += 1

    # The whole

    def test_revoking_the_whole(self, desk: Desk) -> None:
        result = chain(group(desk.step.s("a"), desk.step.s("b")), desk.count.s()).delay()
        result.revoke()
        self.finish(desk)
        assert desk.log == []
        assert result.state == REVOKED
        with pytest.raises(TaskRevoked):
            result.get(timeout=10)

    def test_revoking_it_while_it_runs(self, desk: Desk) -> None:
        result = chain(desk.step.s("a"), desk.after.s("b"), desk.after.s("c")).delay()
        worker = Hand(desk.app)
        by = desk.app.clock.monotonic() + 60
        while not worker.turn():  # a broker may take its time to hand over the first
            assert desk.app.clock.monotonic() < by
        result.revoke()
        worker.work()
        worker.close()
        assert desk.log == ["a"]
        assert result.state == REVOKED

    def test_revoking_one_member_ends_the_whole(self, desk: Desk) -> None:
        result = chord([desk.step.s("a"), desk.step.s("b")], desk.count.s()).delay()
        desk.app.AsyncResult(f"{result.id}-0-1").revoke()
        self.finish(desk)
        assert desk.log == ["a"]
        assert result.state == REVOKED

    def test_the_whole_expires_at_once(self, desk: Desk) -> None:
        result = chain(desk.step.s("a"), desk.after.s("b")).apply_async(expires=0.001)
        later = chain(desk.step.s("c"), desk.after.s("d")).apply_async(expires=3600)
        desk.app.clock.sleep(0.01)
        self.finish(desk)
        assert desk.log == ["c", "d"]
        assert result.state == EXPIRED
        with pytest.raises(TaskExpired):
            result.get(timeout=10)
        assert later.get(timeout=10) == "d"

    def test_members_are_read_as_they_end_and_in_order(self, desk: Desk) -> None:
        result = group(desk.add.s(n, 0) for n in range(30)).delay()
        with pytest.raises(ResultTimeout, match="0 of 30 tasks"):
            result.get(timeout=0.01)
        self.finish(desk)
        assert list(result.iter(timeout=10)) == list(range(30))
        ended = [each.get() for each in result.as_completed(timeout=10)]
        assert sorted(ended) == list(range(30))
        members = result.members()
        assert members.completed() == len(members) == 30
        assert members[-1].get(timeout=10) == 29
        assert [each.id for each in members][:2] == [f"{result.id}-0-0", f"{result.id}-0-1"]

    def test_children_and_graph(self, desk: Desk) -> None:
        result = graph(desk).delay()
        assert [each.state for each in result.children[:2]] == [PENDING, PENDING]  # type: ignore[union-attr]
        self.finish(desk)
        assert result["b"].get(timeout=10) == 7
        assert result["d"].get(timeout=10) == [1, 2, 3]
        assert "✓ 6 last: add  after b, e" in result.graph()
        assert "s1 --> s6" in result.graph("mermaid")
        assert "s1 -> s6;" in result.graph("dot")

    def test_forgetting_the_whole(self, desk: Desk) -> None:
        result = chord(
            [desk.step.s("a") | desk.after.s("b"), desk.step.s("c")], desk.count.s()
        ).delay()
        self.finish(desk)
        ids = [result.id, f"{result.id}-1", f"{result.id}-0-0", f"{result.id}-0-0-1"]
        backend = desk.app.require_backend()
        assert len(backend.fetch(ids)) == 4
        result.forget()
        assert backend.fetch(ids) == {}

    def test_children_of_a_task(self, desk: Desk) -> None:
        @desk.app.task(name="parent")
        def parent() -> None:
            desk.add.delay(1, 2)
            (desk.add.s(1, 2) | desk.add.s(3)).delay()

        result = parent.delay()
        self.finish(desk)
        task, flow = result.children
        assert task.get(timeout=10) == 3
        assert flow.get(timeout=10) == 6
        assert task.info["parent"] == flow.info["parent"] == result.id
        assert task.info["root"] == flow.info["root"] == result.id
