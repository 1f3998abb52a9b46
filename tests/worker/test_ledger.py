from __future__ import annotations

import os

from taskline.worker.ledger import ID_BYTES, Ledger


def test_a_new_ledger_knows_nothing() -> None:
    ledger = Ledger(3)
    assert ledger.running() == []
    assert not ledger.ready


def test_what_a_dead_process_ran_is_still_there() -> None:
    ledger = Ledger(2)
    pid = os.fork()
    if not pid:
        ledger.mark_ready(1.0)
        ledger.start(0, "finished", 10.0)
        ledger.clear(0)
        ledger.start(1, "killed-here", 11.0, deadline=12.5)
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    assert ledger.ready
    [running] = ledger.running()
    assert running == ("killed-here", 11.0, 12.5)


def test_ids_of_any_length_and_script_fit() -> None:
    ledger = Ledger(1)
    ledger.start(0, "ü" * ID_BYTES, 1.0)
    assert ledger.running()[0].id.startswith("üü")
    ledger.start(0, "x" * ID_BYTES, 1.0)
    assert ledger.running()[0].id == "x" * ID_BYTES


def test_reset_makes_it_new() -> None:
    ledger = Ledger(1)
    ledger.mark_ready(1.0)
    ledger.start(0, "a", 1.0)
    ledger.reset()
    assert not ledger.ready
    assert ledger.running() == []
