"""How measurements are put together: medians, turns, and peers that fail."""

from __future__ import annotations

import pytest

from benchmarks import runs
from benchmarks.runs import Failed, Scenario, interleaved, median, ratio

SCENARIO = Scenario("drain", "drain", {"n": 1})


def test_peers_take_turns_and_medians_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []
    figures = {"a": iter([1.0, 50.0, 3.0]), "b": iter([4.0, 5.0, 6.0])}

    def measure(peer: str, scenario: Scenario) -> dict[str, float]:
        turns.append(peer)
        return {"per_second": next(figures[peer])}

    monkeypatch.setattr(runs, "measure", measure)
    found = interleaved(["a", "b"], SCENARIO, rounds=3)
    assert turns == ["a", "b", "b", "a", "a", "b"]
    assert {peer: median(rounds) for peer, rounds in found.items()} == {
        "a": {"per_second": 3.0},
        "b": {"per_second": 5.0},
    }


def test_a_peer_that_fails_is_told_of_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(peer: str, scenario: Scenario) -> dict[str, float]:
        if peer == "b":
            raise Failed("b, drain:\nNoSuchThing: gone")
        return {"per_second": 1.0}

    monkeypatch.setattr(runs, "measure", measure)
    found = interleaved(["a", "b"], SCENARIO, rounds=2)
    assert median(found["a"]) == {"per_second": 1.0}
    assert median(found["b"]) == {"failed": "NoSuchThing: gone"}
    assert ratio(found["a"], found["b"], "per_second") is None
    assert "NoSuchThing" in capsys.readouterr().err


def test_ratios_are_taken_within_a_round() -> None:
    ours = [{"per_second": 10.0}, {"per_second": 100.0}, {"per_second": 30.0}]
    theirs = [{"per_second": 5.0}, {"per_second": 50.0}, {"per_second": 10.0}]
    assert ratio(ours, theirs, "per_second") == 2.0
    assert ratio(ours, [{}, {}, {}], "per_second") is None


def test_one_failed_run_fails_the_peer() -> None:
    assert median([{"per_second": 1.0}, {"failed": "gone"}]) == {"failed": "gone"}
