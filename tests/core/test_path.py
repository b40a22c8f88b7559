"""How many files and functions of ours a reference passes on its way to the call of the registry's actor."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import cloudpickle
import pytest
import ray

import safe_refs

PACKAGE = str(Path(safe_refs.__file__).parent)
# What a comprehension does is its function's.
PARTS_OF_FUNCTIONS = {"<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>"}


def passed(call: Callable[[], Any]) -> tuple[Any, set[tuple[str, str]]]:
    """What a call returns, and the files and functions of the package that it passes before Ray is asked to call an actor."""
    found: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call":
            return
        if code.co_name == "remote" and "safe_refs" not in code.co_filename:
            sys.setprofile(None)
        elif code.co_filename.startswith(PACKAGE) and code.co_name not in PARTS_OF_FUNCTIONS:
            found.add((code.co_filename, code.co_qualname if sys.version_info >= (3, 11) else code.co_name))

    sys.setprofile(note)
    try:
        value = call()
    finally:
        sys.setprofile(None)
    return value, found


def test_the_way_to_the_actor_is_short(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dumps` of one reference passes at most 12 files and 25 functions, and so do `loads` and `release`."""
    monkeypatch.delenv("SAFE_REFS_REGISTRY", raising=False)
    assert cloudpickle  # where it is imported, it is asked, too
    ref = ray.put("v")
    first = safe_refs.dumps(ref)
    safe_refs.loads(first)
    safe_refs.release(first)  # so that first contact, for each of the three, is over
    payload, out = passed(lambda: safe_refs.dumps(ref))
    loaded, into = passed(lambda: safe_refs.loads(payload))
    released, end = passed(lambda: safe_refs.release(payload))
    assert ray.get(loaded, timeout=20) == "v"
    assert released == 1
    for way in (out, into, end):
        files = {file for file, _ in way}
        assert any(file.endswith("calls.py") for file in files)  # it did reach the call
        assert len(files) <= 12, sorted(files)
        assert len(way) <= 25, "\n".join(f"{Path(file).name}:{name}" for file, name in sorted(way))
