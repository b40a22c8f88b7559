"""The payload format: recognized at once, checked before any of its pickle runs, and the same in every release."""

from __future__ import annotations

import json
import pickle
import pickletools
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

import safe_refs
from safe_refs import envelope
from safe_refs.envelope import Header, LeaseAddress
from safe_refs.errors import EnvelopeError

GOLDEN = Path(__file__).parents[1] / "golden"
ADDRESS = LeaseAddress("default", bytes(range(28)), b"epoch..1", 3, bytes(range(16)))


class Bomb:
    """Unpickling it is noticed."""

    went_off = 0

    def __reduce__(self) -> Any:
        return explode, ()


def explode() -> None:
    Bomb.went_off += 1


def payload_of(inner: bytes, **changes: Any) -> bytes:
    header = Header(ADDRESS, b"tag-tag-", "oo", {"ttl": 9.5, "label": "l"}, 1.5, len(inner), 0, signed=False)._replace(
        **changes
    )
    return envelope.wrap(header, [inner])


BOMB = payload_of(pickle.dumps(Bomb()))


@given(
    st.builds(
        LeaseAddress,
        st.text(),
        st.binary(min_size=28, max_size=28),
        st.binary(min_size=8, max_size=8),
        st.integers(0, 2**63),
        st.binary(min_size=16, max_size=16),
    ),
    st.integers(0, 3000),
    st.fixed_dictionaries({}, optional={"ttl": st.floats(0.1, 1e9), "uses": st.integers(1, 2**40), "label": st.text()}),
    st.floats(0, 4e9),
    st.integers(0, 5),
    st.lists(st.binary(max_size=300)),
    st.binary(max_size=20),
)
def test_what_is_wrapped_is_found_again(
    address: LeaseAddress, slots: int, terms: Any, made_at: float, buffers: int, pieces: list[bytes], after: bytes
) -> None:
    """Every header and inner pickle comes out as it went in, whatever follows the payload."""
    inner = b"".join(pieces)
    header = Header(address, b"tag-tag-", "o" * slots, terms, made_at, len(inner), buffers, signed=False)
    found = envelope.find(envelope.wrap(header, pieces) + after)
    assert found.header == header
    assert bytes(found.inner) == inner


def test_a_payload_is_a_pickle_by_the_book() -> None:
    """`pickletools` reads a payload: the documented opcodes, one after another, and no more."""
    opcodes = [(code.name, arg) for code, arg, _ in pickletools.genops(payload_of(b"inner"))]
    names = [name for name, _ in opcodes]
    assert names == [
        *("PROTO", "SHORT_BINUNICODE", "SHORT_BINUNICODE", "STACK_GLOBAL"),
        *("BINBYTES8", "TUPLE1", "REDUCE", "STOP"),
    ]
    assert [arg for _, arg in opcodes[:3]] == [5, "safe_refs", "open_payload"]
    with_buffers = payload_of(b"inner", buffers=2)
    names = [code.name for code, _, _ in pickletools.genops(with_buffers)]
    assert names[5:] == ["MARK", "NEXT_BUFFER", "NEXT_BUFFER", "TUPLE", "TUPLE2", "REDUCE", "STOP"]


@pytest.mark.parametrize("cut", [*range(7, len(BOMB))])
def test_a_payload_cut_anywhere_is_refused_before_its_pickle_runs(cut: int) -> None:
    """Wherever the end is missing, `loads`, `inspect` and `release` say so, and nothing was unpickled."""
    for open_it in (safe_refs.loads, safe_refs.inspect, safe_refs.release):
        with pytest.raises(EnvelopeError):
            open_it(BOMB[:cut])
    assert Bomb.went_off == 0


def test_a_cut_within_the_first_bytes_is_pickles_own_error() -> None:
    """Too short to be told from another pickle, it is refused as `pickle` refuses it."""
    for cut in range(7):
        with pytest.raises((EOFError, pickle.UnpicklingError)):
            safe_refs.loads(BOMB[:cut])


@pytest.mark.parametrize("at", [*range(len(envelope.PREFIX), len(BOMB) - len(pickle.dumps(Bomb())) - 3)])
def test_a_header_altered_anywhere_is_refused_before_its_pickle_runs(at: int) -> None:
    """Any byte of length or header changed: refused, and nothing was unpickled."""
    for change in (0x01, 0x80, 0xFF):
        altered = bytearray(BOMB)
        altered[at] ^= change
        with pytest.raises(EnvelopeError):
            safe_refs.loads(bytes(altered))
    assert Bomb.went_off == 0


@given(st.binary(max_size=400))
def test_rubbish_behind_the_prefix_is_refused(body: bytes) -> None:
    """A body that isn't one is an `EnvelopeError`, never anything else."""
    data = envelope.PREFIX + len(body).to_bytes(8, "little") + body + b"\x85R."
    with pytest.raises(EnvelopeError):
        safe_refs.loads(data)
    with pytest.raises(EnvelopeError):
        pickle.loads(data)


def test_an_unknown_version_is_refused_by_its_number() -> None:
    """A payload of a later format names its version and the remedy, rather than being misread."""
    sealed = envelope.seal({"v": 2, **envelope.pack_address(ADDRESS), "x": b"tag-tag-", "k": "o", "m": 1.0, "n": 0})
    data = envelope.PREFIX + len(sealed).to_bytes(8, "little") + sealed + b"\x85R."
    with pytest.raises(EnvelopeError, match=r"version 2.*reads version 1.*install"):
        safe_refs.loads(data)


def test_unknown_keys_are_ignored_and_unknown_kinds_refused() -> None:
    """A later release may say more in its header; but a kind of reference that this one can't make is refused by name."""
    fields = {"v": 1, **envelope.pack_address(ADDRESS), "x": b"tag-tag-", "k": "o", "m": 1.0, "n": 2, "zz": [1, 2]}
    sealed = envelope.seal(fields)
    body = sealed + b"N."
    data = envelope.PREFIX + len(body).to_bytes(8, "little") + body + b"\x85R."
    assert safe_refs.loads(data, resolve=False) is None
    with pytest.raises(EnvelopeError, match="kind 'x'"):
        safe_refs.loads(payload_of(b"N.", kinds="ox"), resolve=False)


def test_a_signed_payload_is_refused_until_signatures_can_be_checked() -> None:
    """A payload that says it is signed isn't opened unchecked."""
    sealed = envelope.seal(
        {"v": 1, **envelope.pack_address(ADDRESS), "x": b"tag-tag-", "k": "", "m": 1.0, "n": 0, "s": 1}
    )
    data = envelope.PREFIX + len(sealed).to_bytes(8, "little") + sealed + b"\x85R."
    with pytest.raises(EnvelopeError, match="signed"):
        safe_refs.loads(data)


@pytest.mark.parametrize("wrong", ["text", 5, None, [b"x"]], ids=repr)
def test_what_is_no_buffer_of_bytes_is_a_type_error(wrong: Any) -> None:
    """As from `pickle.loads`."""
    with pytest.raises(TypeError):
        safe_refs.loads(wrong)
    with pytest.raises(TypeError):
        safe_refs.inspect(wrong)


def test_inspect_reads_a_payload_without_ray_and_without_unpickling() -> None:
    """All that a gateway wants to know of a payload, from its bytes alone."""
    info = safe_refs.inspect(memoryview(BOMB))
    assert info.lease_id == bytes(range(16)).hex()
    assert (info.registry, info.generation, info.cluster) == ("default", 3, bytes(range(28)).hex())
    assert [(handle.slot, handle.short_id) for handle in info.handles] == [(0, "00010203"), (1, "00010203")]
    assert info.terms == {"ttl": 9.5, "label": "l"}
    assert (info.size, info.pickle_size, info.buffers, info.made_at) == (len(BOMB), len(pickle.dumps(Bomb())), 0, 1.5)
    assert Bomb.went_off == 0
    assert info.lease_id not in repr(info)


def test_inspect_of_a_plain_pickle_says_that_it_has_no_lease() -> None:
    """What `dumps` gives for an object without references is looked at in the same way."""
    info = safe_refs.inspect(safe_refs.dumps({"plain": 1}))
    assert (info.lease_id, info.handles) == (None, ())
    with pytest.raises(EnvelopeError, match="neither"):
        safe_refs.inspect(b"rubbish")


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("*.bin")))
def test_golden_payloads_open_in_this_release(name: str) -> None:
    """Payloads and handles that earlier releases wrote read just as they did then."""
    data = (GOLDEN / name).read_bytes()
    expected = json.loads((GOLDEN / name).with_suffix(".json").read_text())
    if name.startswith("handle"):
        handle = safe_refs.SafeRef.from_bytes(data)
        assert handle == safe_refs.SafeRef.parse(expected["text"])
        assert (handle.lease_id, handle.slot) == (expected["lease_id"], expected["slot"])
        return
    info = safe_refs.inspect(data)
    for key in ("lease_id", "registry", "generation", "cluster", "terms", "made_at", "pickle_size", "buffers"):
        assert getattr(info, key) == expected[key], key
    buffers = [bytes.fromhex(buffer) for buffer in expected["buffer_contents"]]
    assert repr(safe_refs.loads(data, resolve=False, buffers=buffers)) == expected["loaded"]


def test_golden_payloads_are_written_byte_for_byte() -> None:
    """The format does not drift: what this release writes for the same header and pickle is what is on file."""
    for path in GOLDEN.glob("payload-v1-*.bin"):
        data = path.read_bytes()
        found = envelope.find(data)
        assert envelope.wrap(found.header, [found.inner]) == data
    for path in GOLDEN.glob("handle-v1-*.bin"):
        assert bytes(safe_refs.SafeRef.from_bytes(path.read_bytes())) == path.read_bytes()


def test_the_header_can_be_read_by_the_book() -> None:
    """docs/format.md is enough to read a header with nothing but msgpack and a CRC-32."""
    import zlib

    body_size = int.from_bytes(BOMB[len(envelope.PREFIX) :][:8], "little")
    body = BOMB[len(envelope.PREFIX) + 8 :][:body_size]
    unpacker = msgpack.Unpacker()
    unpacker.feed(body)
    fields = unpacker.unpack()
    header = body[: unpacker.tell()]
    assert list(fields) == ["v", "r", "K", "e", "g", "i", "x", "k", "t", "m", "n", "c"]
    assert fields["c"] == zlib.crc32(header[:-4])
    assert body[len(header) :] == pickle.dumps(Bomb())
