"""What safe_refs logs: at most once a minute for one cause."""

from __future__ import annotations

import ast
import logging
import threading

import pytest

from safe_refs import logs
from tests.support.house import modules


class Clock:
    """Time that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Logger:
    """A logger with a filter and a clock of its own; the lines that it has passed on.

    Args:
        name: of the logger.
    """

    def __init__(self, name: str = "any") -> None:
        self.clock = Clock()
        self.filter = logs.OnceAMinute(self.clock)
        self.lines: list[str] = []
        self._name = name

    def log(self, text: object, *args: object, about: object = None) -> None:
        record = logging.LogRecord(self._name, logging.WARNING, "", 0, text, args, None)
        record.about = about
        if self.filter.filter(record):
            self.lines.append(record.getMessage())


def test_a_cause_is_one_line_a_minute() -> None:
    """Whatever figures are in it; a line that comes after others were left out says how many, and since when."""
    logger = Logger()
    for second in range(181):
        logger.clock.now = float(second)
        logger.log("lease %d is away", second)
    assert logger.lines == [
        "lease 0 is away",
        "lease 60 is away (and 59 more like this in the last 60 s)",
        "lease 120 is away (and 59 more like this in the last 60 s)",
        "lease 180 is away (and 59 more like this in the last 60 s)",
    ]
    logger.clock.now = 1000.0
    logger.log("lease %d is away", 1000)
    assert logger.lines[-1] == "lease 1000 is away"


def test_other_causes_are_other_lines() -> None:
    """By their text; or by what they are about, where that is said."""
    logger = Logger()
    for _ in range(10):
        for shard in range(3):
            logger.log("shard %d is away", shard, about=shard)
        logger.log("100 % away")
        logger.log("a relay is away", about=("one", 1))
    assert logger.lines == ["shard 0 is away", "shard 1 is away", "shard 2 is away", "100 % away", "a relay is away"]
    logger.clock.now = 60.0
    logger.log("shard %d is away", 1, about=1)
    logger.log("%s is away", "shard 1")
    assert logger.lines[5:] == ["shard 1 is away (and 9 more like this in the last 60 s)", "shard 1 is away"]


def test_a_text_without_figures_may_have_a_percent_sign() -> None:
    """Also when it says how many were left out."""
    logger = Logger()
    for second in (0.0, 1.0, 70.0):
        logger.clock.now = second
        logger.log("100 % full")
    assert logger.lines == ["100 % full", "100 % full (and 1 more like this in the last 70 s)"]


def test_of_many_threads_one_logs() -> None:
    """And all others are counted."""
    logger, count, turns = Logger(), 16, 50
    begin = threading.Barrier(count)

    def work() -> None:
        for turn in range(turns):
            if begin.wait() == 0:
                logger.clock.now = 60.0 * turn
            begin.wait()
            logger.log("away")

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert logger.lines == ["away"] + [f"away (and {count - 1} more like this in the last 60 s)"] * (turns - 1)


def test_causes_are_bounded() -> None:
    """A storm of distinct ones takes no more room, and those that came last are still known."""
    logger = Logger()
    for number in range(10_000):
        logger.log("shard %d is away", number, about=number)
    assert len(logger.filter._last) <= logs._MOST
    logger.lines.clear()
    logger.log("shard %d is away", 9_999, about=9_999)
    assert logger.lines == []


def test_a_handler_that_logs_the_same_is_no_storm(caplog: pytest.LogCaptureFixture) -> None:
    """What logs in the middle of logging, a destructor say, is left out, and nothing waits for itself."""

    class Again(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logger.warning("a test is away")

    logger, again = logging.getLogger(logs.LOGGERS[0]), Again()
    logger.addHandler(again)
    try:
        logger.warning("a test is away")
    finally:
        logger.removeHandler(again)
    assert caplog.messages == ["a test is away"]


def test_all_that_we_log_goes_through_it() -> None:
    """Every logger of the package is one of those that have the filter, once."""
    found = set()
    for path in modules().values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "getLogger" and path.stem != "logs":
                (name,) = node.args
                found.add(ast.literal_eval(name))
    assert found == set(logs.LOGGERS)
    for each in found:
        assert logging.getLogger(each).filters == [logs.once_a_minute]
