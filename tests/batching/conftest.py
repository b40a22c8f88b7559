"""The group that tests of group commit share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.groups import Echo, gone
from tests.support.waiting import wait_until


@pytest.fixture
def echo() -> Iterator[Echo]:
    """One whose gate is shut; in the end nobody leads, nor queues, and no thread is taken to be in the group but its own."""
    made = Echo()
    yield made
    made.open = True
    made.gate.release(100)
    wait_until(made.is_at_rest)
    made.group.close(gone)
    wait_until(lambda: made.group._thread is None and not made.inside)
