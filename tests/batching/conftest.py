"""The group that tests of group commit share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.groups import Echo, gone, sender
from tests.support.waiting import wait_until


@pytest.fixture
def echo() -> Iterator[Echo]:
    """One whose gate is shut; in the end no call is under way, nothing queues, and its thread has ended."""
    made = Echo()
    yield made
    made.open = True
    made.gate.release(100)
    wait_until(made.is_at_rest)
    made.group.close(gone)
    wait_until(lambda: made.group._sending.thread is None)


@pytest.fixture
def gate(cluster: str, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """As long as it isn't set, nothing that is posted goes out."""
    event = threading.Event()
    group = sender()._pins.get("default") or sender()._pin_group("default")
    together = group._together

    def wait_and_pin(*args: Any) -> Any:
        assert event.wait(30)
        return together(*args)

    monkeypatch.setattr(group, "_together", wait_and_pin)
    return event
