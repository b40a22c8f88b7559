"""Fixtures for the tests of the ledger's rules."""

from __future__ import annotations

import pytest

from .judging import made
from .ledger import Ledger, Payload, Process


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def owner(ledger: Ledger) -> Process:
    return ledger.born("t1", "a.0", "a", "node 1")


@pytest.fixture
def payload(ledger: Ledger, owner: Process) -> Payload:
    """Of two objects, made from 10 to 11."""
    return made(ledger, owner)
