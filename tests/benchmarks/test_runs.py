"""How measurements are put together: medians, turns, and peers that fail."""

from __future__ import annotations

import pytest

from benchmarks import runs
from benchmarks.runs import Failed, Scenario, interleaved

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
    assert found == {"a": {"per_second": 3.0}, "b": {"per_second": 5.0}}


def test_a_peer_that_fails_is_told_of_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(peer: str, scenario: Scenario) -> dict[str, float]:
        if peer == "b":
            raise Failed("b, drain:\nNoSuchThing: gone")
        return {"per_second": 1.0}

    monkeypatch.setattr(runs, "measure", measure)
    found = interleaved(["a", "b"], SCENARIO, rounds=2)
    assert found == {"a": {"per_second": 1.0}, "b": {"failed": "NoSuchThing: gone"}}
    assert "NoSuchThing" in capsys.readouterr().err
