"""Calls between processes are checked at both ends: a method that is renamed, or another argument or answer, fails in mypy."""

from __future__ import annotations

from pathlib import Path

import pytest
from mypy import api

PROGRAM = """
from safe_refs.registry.calls import Call
from safe_refs.registry.records import Identity, Origin
from safe_refs.registry.shard import Shard
from safe_refs.registry.wire import CloseCall, RenewCall

maker = Origin("job", "node", 1, "source")
Call(Shard.close, CloseCall(maker, 1.0))
Call(Shard.end, CloseCall(maker, 1.0))
Call(Shard.close, RenewCall(1, b"", Identity(b"", 1), None, False, None))
Call(Shard.close, CloseCall(maker, "long"))
answer: str = Call(Shard.close, CloseCall(maker, 1.0))
"""


@pytest.mark.long
def test_mypy_sees_both_ends_of_a_call(tmp_path: Path) -> None:
    """The right call passes. Another method, another kind of call, another field and another answer each fail."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    found, errors, _ = api.run(["--strict", "--cache-dir", str(tmp_path / "cache"), str(program)])
    assert not errors
    lines = {int(line.split(":")[1]) for line in found.splitlines() if "error:" in line and "program.py" in line}
    assert lines == {9, 10, 11, 12}, found
