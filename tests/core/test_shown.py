"""What others have written is cleaned where people see it: labels, source lines, and what a payload says of itself."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import checks, envelope
from safe_refs.envelope import Header, LeaseAddress
from safe_refs.registry.records import Origin

NASTY = "red \x1b[31m\r\nERROR it is forged\x00 \u202egnihton \ud800"
WRITABLE = NASTY.replace("\ud800", "")  # a label has to be
LONG = "ü" * 512  # 1 KiB in UTF-8
ADDRESS = LeaseAddress("default", bytes(range(28)), b"epoch..1", 3, bytes(range(16)))


def payload_of(inner: bytes, **changes: Any) -> bytes:
    header = Header(ADDRESS, b"tag-tag-", "oo", {}, 1.5, len(inner), 0, signed=False)._replace(**changes)
    return envelope.wrap(header, [inner])


def test_a_text_of_others_is_one_line_that_a_terminal_does_not_obey() -> None:
    """Control characters, changes of direction and broken ones become escapes; what is long is cut."""
    assert checks.shown("jürgen's job, 1") == "jürgen's job, 1"
    assert checks.shown(NASTY) == "red \\x1b[31m\\r\\nERROR it is forged\\x00 \\u202egnihton \\ud800"
    assert len(checks.shown("x" * 5_000_000)) == 1024
    assert str(Origin("01000000\n", "ab" * 28, 1, NASTY)).isprintable()
    assert Origin(NASTY, NASTY, 1, NASTY).process.isprintable()


def test_a_label_is_kept_as_it_is_and_shown_clean(registry: str) -> None:
    """`leases()` gives it back; the error of somebody else who meets a limit is one short line, as are the rows that one prints."""
    safe_refs.init(max_leases=2)
    kept = [safe_refs.dumps(ray.put(1), label=WRITABLE), safe_refs.dumps(ray.put(2), label=LONG)]
    with pytest.raises(safe_refs.RegistryFullError) as raised:
        safe_refs.dumps(ray.put(3))
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 4000
    assert WRITABLE in dict(raised.value.largest)
    rows = safe_refs.leases()
    assert [row.label for row in rows] == [WRITABLE, LONG]
    assert all(repr(each).isprintable() for each in (*rows, *map(safe_refs.inspect, kept)))
    assert safe_refs.release(label=WRITABLE) == 1
    assert safe_refs.release(kept[1]) == 1


def test_a_label_that_a_payload_could_not_carry_is_refused(cluster: str) -> None:
    """A label of 5 MB made a payload that nobody could open or release, and others' errors were as long."""
    for label in ("x" * 5_000_000, "x" * 1025, "ü" * 513):
        with pytest.raises(ValueError, match="label must have at most 1024 bytes"):
            safe_refs.dumps(ray.put(1), label=label)
        with pytest.raises(ValueError, match="label"), safe_refs.scope(label=label):
            pass
    assert safe_refs.leases() == []


def test_a_long_or_nasty_source_line_is_cut_and_cleaned(cluster: str) -> None:
    """The line that made or took a lease may be in a file of any name; the lease is made, and the error is one short line."""
    made: dict[str, Callable[[Any], bytes]] = {}
    name = "/tmp/" + "deep/" * 1000 + "bad\x1b[31m\nname.py"  # noqa: S108 # nothing is written
    code = "def make(ref):\n    return safe_refs.dumps(ref, uses=1)\ndef take(data):\n    return safe_refs.loads(data, take=True)"
    exec(compile(code, name, "exec"), {"safe_refs": safe_refs}, made)  # noqa: S102 # the only way to such a name
    payload = made["make"](ray.put("v"))
    (row,) = safe_refs.leases()
    assert len(row.source.encode()) <= 1024
    assert "name.py:2 in make" in row.source
    assert repr(row).isprintable()
    made["take"](payload)
    with pytest.raises(safe_refs.LeaseReleasedError, match="in take") as raised:
        safe_refs.loads(payload)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    "changes",
    [
        {"kinds": "o" * (envelope.MOST_REFERENCES + 1)},
        {"kinds": "o" * 4_000_000},
        {"terms": {"label": "x" * 1025}},
        {"terms": {"label": 5}},
        {"terms": {"ttl": float("nan")}},
        {"terms": {"uses": 0}},
        {"terms": {"new": [[]] * 65}},
        {"terms": {"new": "x" * 9000}},
        {"terms": {"new": b"x" * 9000}},
        {"address": ADDRESS._replace(registry="x" * 1025)},
    ],
    ids=lambda changes: str(changes)[:24],
)
def test_a_header_that_says_too_much_is_refused_before_it_is_made(changes: dict[str, Any]) -> None:
    """Whatever it says: the payload is refused, and no room was taken for what it claims."""
    payload = payload_of(pickle.dumps(None), **changes)
    tracemalloc.start()
    try:
        with pytest.raises(safe_refs.EnvelopeError):
            safe_refs.loads(payload, resolve=False)
        with pytest.raises(safe_refs.EnvelopeError):
            safe_refs.inspect(payload)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20


@pytest.mark.parametrize("claim", [kind + b"\xff\xff\xff\xff" for kind in (b"\xdd", b"\xdf", b"\xc6", b"\xdb")])
def test_a_claim_of_four_thousand_million_items_takes_no_room(claim: bytes) -> None:
    """A few bytes say that so many items, keys, bytes or characters follow, in each other, a hundred times."""
    body = b"\x82\xa1v" + claim * 100
    payload = envelope.PREFIX + len(body).to_bytes(8, "little") + body + b"\x85R."
    tracemalloc.start()
    try:
        with pytest.raises(safe_refs.EnvelopeError):
            safe_refs.loads(payload)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_slots_that_no_pickle_names_take_no_room() -> None:
    """The most references that a header may name cost nothing where the pickle names none; they cost 110 times their bytes."""
    payload = payload_of(pickle.dumps("no slot"), kinds="o" * envelope.MOST_REFERENCES)
    tracemalloc.start()
    try:
        assert safe_refs.loads(payload, resolve=False) == "no slot"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20


def test_more_references_than_a_payload_can_name_are_refused(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they are pinned: a payload of 4.2 million references could be opened by nobody."""
    monkeypatch.setattr(envelope, "MOST_REFERENCES", 3)
    refs = [ray.put(number) for number in range(4)]
    for make in (safe_refs.dumps, safe_refs.pin):
        with pytest.raises(ValueError, match="at most 3 references, not 4"):
            make(refs)
    assert safe_refs.leases() == []
    assert len(safe_refs.loads(safe_refs.dumps(refs[:3]), take=True)) == 3
