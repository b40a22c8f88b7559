"""docs/architecture.md: its picture, its names and the way that it tells are those of the code."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from types import FrameType

import ray

import safe_refs
from safe_refs.config import Limits
from safe_refs.registry.records import Identity, Origin, Terms
from safe_refs.registry.shard import Shard
from safe_refs.registry.wire import PinCall, PinRow, ResolveCall, ResolveRow
from tests.support import house, house_drawing

PAGE = house.ROOT / "docs" / "architecture.md"
# A file of ours, and what stands in it: `registry/shard.py:Shard.pin`.
NAMES = re.compile(r"`((?:tests/)?[\w/]+\.py):([\w.]+)`")


def test_the_picture_is_that_of_the_code() -> None:
    """Its rooms, files and arrows are those of the imports; `make house` draws it anew. Lines may differ a little."""
    svg = house_drawing.PICTURE.read_text()
    assert house_drawing.drawn_arrows(svg) == set(house.arrows())
    assert house_drawing.drawn_files(svg) == house_drawing.files()


def test_imports_between_rooms_run_one_way() -> None:
    """Rooms can be drawn from top to bottom; the wings stand side by side, and only `assembly` imports them."""
    rows = house.levels()
    wings = {"batching", "replication", "durability", "anchoring"}
    assert wings in [set(row) for row in rows]
    assert {above for above, below in house.arrows() if below in wings} == {"assembly"}


def test_the_page_is_one_page() -> None:
    """What a screen or two hold."""
    assert len(PAGE.read_text().splitlines()) <= 125


def test_every_name_on_the_page_is_in_the_code() -> None:
    """Each `file:function` exists, and each room has its row."""
    text = PAGE.read_text()
    found = NAMES.findall(text)
    assert len(found) > 40
    for file, name in found:
        path = (house.ROOT if file.startswith("tests/") else house.PACKAGE) / file
        assert path.exists(), file
        assert house.defines(path, name), f"{file}:{name}"
    for room in house.ROOMS:
        assert f"| `{room.name}` |" in text, room.name


def test_the_page_tells_the_way() -> None:
    """Its numbered lists name the steps in their order."""
    text = PAGE.read_text()
    out, back = text.index("### Out: `dumps`"), text.index("### Back: `loads`")
    for section, way in ((text[out:back], house.DUMPS), (text[back:], house.LOADS)):
        told = iter(NAMES.findall(section))
        for module, name in way:
            assert (module.replace(".", "/") + ".py", name) in told, f"{module}.{name}"


def test_a_reference_goes_that_way(cluster: str) -> None:
    """`dumps` and `loads` call the steps in their order, in the process and in the shard."""
    ref = ray.put("v")
    first = safe_refs.dumps(ref)
    safe_refs.loads(first)
    safe_refs.release(first)  # so that first contact is over
    payload = b""

    def dump() -> None:
        nonlocal payload
        payload = safe_refs.dumps(ref)

    dumped = called(dump)
    loaded = called(lambda: safe_refs.loads(payload))
    safe_refs.release(payload)
    lease, maker = os.urandom(16), Origin("job", "node", 1, "file")
    shard = Shard("none", Identity(os.urandom(8), 1), Limits())
    row = ResolveRow(lease, shard.table.identity, None, True, maker, b"use")
    pinned = called(lambda: shard.pin(PinCall(0, [PinRow(lease, 1, Terms(), maker, b"", {})]), [ref]))
    resolved = called(lambda: shard.resolve(ResolveCall(0, [row])))
    for way, here, there in ((house.DUMPS, dumped, pinned), (house.LOADS, loaded, resolved)):
        actors = [number for number, (module, _) in enumerate(way) if module in ("registry.shard", "registry.leases")]
        assert_in_order([*way[: actors[0]], *way[actors[-1] + 1 :]], here)
        assert_in_order(way[actors[0] : actors[-1] + 1], there)


def called(call: Callable[[], object]) -> list[tuple[str, str]]:
    """The functions of the package that a call calls in this thread, in order, each as its module and its bare name."""
    found: list[tuple[str, str]] = []
    modules = {str(path): module for module, path in house.modules().items()}

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and (module := modules.get(frame.f_code.co_filename)) is not None:
            found.append((module, frame.f_code.co_name))

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def assert_in_order(steps: Sequence[tuple[str, str]], calls: Sequence[tuple[str, str]]) -> None:
    """The steps are among the calls, in this order."""
    left = iter(calls)
    for module, name in steps:
        assert (module, name.rpartition(".")[2]) in left, (module, name)
