"""Logging as the command line sets it up."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator

import pytest

from taskline.errors import ConfigurationError
from taskline.log import setup


@pytest.fixture(autouse=True)
def _levels() -> Iterator[None]:
    """Restore the levels that `setup` sets."""
    loggers = [logging.getLogger(), logging.getLogger("taskline")]
    levels = [each.level for each in loggers]
    yield
    for each, level in zip(loggers, levels, strict=True):
        each.setLevel(level)


def bare_root(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """The root logger without pytest's handlers, which are there only while a test runs."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    return root


def test_a_record_is_a_line_with_time_level_logger_and_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bare_root(monkeypatch)
    stream = io.StringIO()
    setup("info", stream)
    logging.getLogger("taskline.worker").info("started %d", 3)
    logging.getLogger("taskline.worker").debug("not shown")
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"
    assert re.fullmatch(rf"{stamp} INFO     taskline\.worker: started 3\n", stream.getvalue())


def test_set_up_twice_logs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bare_root(monkeypatch)
    first, second = io.StringIO(), io.StringIO()
    setup("info", first)
    setup("warning", second)
    logging.getLogger("taskline").warning("once")
    logging.getLogger("taskline").info("no more")
    assert first.getvalue() == ""
    assert second.getvalue().count("\n") == 1


def test_the_users_own_handlers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    root = bare_root(monkeypatch)
    own = logging.StreamHandler(io.StringIO())
    root.addHandler(own)
    setup("debug", io.StringIO())
    assert root.handlers == [own]
    assert logging.getLogger("taskline").isEnabledFor(logging.DEBUG)


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no log level 'loud': use one of DEBUG, INFO"):
        setup("loud")
