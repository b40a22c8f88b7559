"""The envelope: bytes that name a lease, readable and checkable without running any pickle.

`seal` and `unseal` turn a small map into bytes with a checksum and back; a payload's header and a handle's bytes are both such a
map. `wrap` puts a header and an inner pickle together into a payload that any `pickle.loads` opens; `find` takes it apart again.
docs/format.md has the layout byte by byte, and golden files in tests/ hold every release to it.

What always holds: nothing here unpickles, asks Ray or knows what a lease means; a map whose checksum or lengths are wrong is
refused with `EnvelopeError`; unknown keys are ignored, an unknown version is refused by its number.
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgpack

from .checks import MOST_BYTES
from .errors import EnvelopeError

FORMAT_VERSION = 1

# PROTO 5, SHORT_BINUNICODE 'safe_refs', SHORT_BINUNICODE 'open_payload', STACK_GLOBAL, BINBYTES8 and, after it, the 8 bytes of
# the body's length. A fixed prefix is what makes a payload recognizable at once.
ENTRY_POINT = "open_payload"
PREFIX = b"\x80\x05\x8c\x09safe_refs\x8c\x0copen_payload\x93\x8e"
_LENGTH = 8
_BODY = len(PREFIX) + _LENGTH
_TUPLE1_REDUCE_STOP = b"\x85R."
_MARK, _NEXT_BUFFER, _TUPLE = b"(", b"\x97", b"t"
_TUPLE2_REDUCE_STOP = b"\x86R."

_CHECKSUM_KEY = b"\xa1c\xce"  # msgpack: the one-letter string "c", then the mark of a 32-bit unsigned number
_CHECKSUM = len(_CHECKSUM_KEY) + 4
_FIXMAP = [bytes([0x80 | count]) for count in range(16)]  # msgpack: the head of a map of so many keys, at most 15
_FIRST_LOOK = 1024  # bytes: nearly every header is shorter
MOST_REFERENCES = 2**20  # of a payload: a header has one byte for each, and nothing else in it is long
_LONGEST_VALUE = (
    2**13
)  # bytes; of all keys but the kinds of the slots. Labels had a thousand characters, and not a thousand bytes
_LARGEST_HEADER = MOST_REFERENCES + 16 * _LONGEST_VALUE
# For msgpack: a few bytes may claim that millions of items follow. Without `read_size` it takes a megabyte at once.
_BOUNDS: Any = {
    "max_buffer_size": _LARGEST_HEADER,
    "read_size": _FIRST_LOOK,
    "max_str_len": MOST_REFERENCES,
    "max_bin_len": _LONGEST_VALUE,
    "max_array_len": 64,
    "max_map_len": 64,
    "max_ext_len": 0,
}


class LeaseAddress(NamedTuple):
    """Where a lease lives. With `lease` in it this is a capability: whoever has it can resolve and release.

    Attributes:
        registry: name of the registry.
        cluster: Ray's id of the cluster, 28 bytes.
        epoch: 8 random bytes that the registry drew when it started.
        generation: which start of the registry that was, counted from 1; for people, the epoch is what counts.
        lease: the lease's id, 16 random bytes.
        soon: whether its maker did not wait until the registry held it: a reader who comes too early waits a little.
    """

    registry: str
    cluster: bytes
    epoch: bytes
    generation: int
    lease: bytes
    soon: bool = False

    @property
    def short_id(self) -> str:
        """First eight hexadecimal digits of the lease's id: enough to tell leases apart, not enough to resolve one."""
        return self.lease[:4].hex()

    def __repr__(self) -> str:
        return f"<LeaseAddress {self.short_id} in registry {self.registry!r}, generation {self.generation}>"


class Header(NamedTuple):
    """What a payload says of itself before any of its pickle runs.

    Attributes:
        address: where its lease lives.
        tag: the tag that the payload's slots name in the inner pickle, 8 random bytes.
        kinds: one letter a slot: `o` is an `ObjectRef`, `a` an `ActorHandle`.
        terms: the terms the lease was made with: `ttl` (seconds), `uses`, `label`, `durable`; only those that were given.
        made_at: seconds since the epoch by the maker's clock.
        inner_size: bytes of the inner pickle.
        buffers: how many out-of-band buffers go with the payload.
        signed: whether a signature follows the inner pickle (no release writes one yet).
    """

    address: LeaseAddress
    tag: bytes
    kinds: str
    terms: Mapping[str, Any]
    made_at: float
    inner_size: int
    buffers: int
    signed: bool


class Found(NamedTuple):
    """A payload taken apart: its header, and a view of its inner pickle that shares the payload's memory."""

    header: Header
    inner: memoryview


def seal(fields: Mapping[str, Any]) -> bytes:
    """Pack `fields` as a msgpack map and append the key `c`, a CRC-32 of all bytes before its value."""
    # The map is counted with one key too many and then ended by hand, because the checksum has to have a fixed width.
    packed: bytes = _FIXMAP[len(fields) + 1] + msgpack.packb(fields)[1:] + _CHECKSUM_KEY
    return packed + binascii.crc32(packed).to_bytes(4, "big")


def unseal(data: memoryview, what: str) -> tuple[dict[str, Any], int]:
    """Unpack the sealed map at the start of `data`; return its fields and its length in bytes.

    Raises:
        EnvelopeError: `what` is cut, altered, or no sealed map at all.
    """
    size = _FIRST_LOOK
    while True:
        try:
            if size > _FIRST_LOOK:
                _check_lengths(data[:size])
            unpacker = msgpack.Unpacker(**_BOUNDS)
            unpacker.feed(data[:size])
            fields = unpacker.unpack()
            break
        except msgpack.OutOfData:
            if size >= len(data):
                raise EnvelopeError(f"{what} is cut short: it ends within its header; get it again, whole") from None
            if size >= _LARGEST_HEADER:
                raise EnvelopeError(
                    f"{what} is altered: its header is longer than any; get it again, unchanged"
                ) from None
            size = min(size * 8, _LARGEST_HEADER)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise EnvelopeError(
                f"{what} is altered: its header can't be read ({type(error).__name__}); get it again, unchanged"
            ) from None
    end = unpacker.tell()
    head = data[:end]
    if (
        not isinstance(fields, dict)
        or end <= _CHECKSUM
        or head[-_CHECKSUM:-4] != _CHECKSUM_KEY
        or binascii.crc32(head[:-4]) != int.from_bytes(head[-4:], "big")
    ):
        raise EnvelopeError(f"{what} is altered: its header does not match its checksum; get it again, unchanged")
    return fields, end


def _check_lengths(data: memoryview) -> None:
    """Whether no key of a map but the kinds of the slots has a long value. Nothing of them is made for that.

    Raises:
        ValueError: one has.
    """
    unpacker = msgpack.Unpacker(**_BOUNDS)
    unpacker.feed(data)
    for _ in range(unpacker.read_map_header()):
        key, begin = unpacker.unpack(), unpacker.tell()
        unpacker.skip()
        if key != "k" and unpacker.tell() - begin > _LONGEST_VALUE:
            raise ValueError


def check_version(fields: Mapping[str, Any], what: str) -> None:
    """Refuse a map of a format that this release does not know.

    Raises:
        EnvelopeError: naming the version found and the one known.
    """
    version = fields.get("v")
    if version != FORMAT_VERSION:
        raise EnvelopeError(
            f"{what} has format version {version!r:.40}, and this release of safe_refs reads version {FORMAT_VERSION}: "
            "install the release that wrote it, or a newer one"
        )


def pack_address(address: LeaseAddress) -> dict[str, Any]:
    """The keys under which an address stands in a sealed map."""
    fields: dict[str, Any] = {
        "r": address.registry,
        "K": address.cluster,
        "e": address.epoch,
        "g": address.generation,
        "i": address.lease,
    }
    if address.soon:
        fields["w"] = True
    return fields


def unpack_address(fields: Mapping[str, Any], what: str) -> LeaseAddress:
    """The address in a sealed map.

    Raises:
        EnvelopeError: a key is missing or of the wrong type or size.
    """
    get = fields.get
    registry, cluster, epoch, generation, lease = get("r"), get("K"), get("e"), get("g"), get("i")
    if (
        not (isinstance(registry, str) and len(registry) <= MOST_BYTES)
        or not (isinstance(cluster, bytes) and len(cluster) == 28)
        or not (isinstance(epoch, bytes) and len(epoch) == 8)
        or not (type(generation) is int and generation >= 0)
        or not (isinstance(lease, bytes) and len(lease) == 16)
    ):
        raise EnvelopeError(
            f"{what} is altered: its header lacks a part of the lease's address; get it again, unchanged"
        )
    return LeaseAddress(registry, cluster, epoch, generation, lease, get("w") is True)


def _are_terms(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    ttl, uses, label = value.get("ttl", 1.0), value.get("uses", 1), value.get("label", "")
    return (
        (type(ttl) is float and 0 < ttl < math.inf)
        and (type(uses) is int and uses > 0)
        and (isinstance(label, str) and len(label) <= MOST_BYTES)
    )


def is_payload(data: Any) -> bool:
    """Whether `data` (any buffer of bytes) starts as a payload does, or is the cut start of one."""
    view = memoryview(data)
    if view.format != "B" or view.ndim != 1:
        view = view.cast("B")
    head = view[: len(PREFIX)]
    # Anything shorter than the module's name in the prefix may as well be the start of some other pickle.
    return head == PREFIX or (len(head) > 6 and PREFIX.startswith(bytes(head)))


def wrap(header: Header, inner: Sequence[Any]) -> bytes:
    """Put a payload together from its header and the pieces of its inner pickle, each copied once.

    Args:
        header: what the payload says of itself; `inner_size` must be the sum of the pieces.
        inner: buffers of bytes.
    """
    _, cluster, epoch, generation, lease, soon = header.address
    # As `pack_address` does it, which would be one function more on the way of every payload.
    fields: dict[str, Any] = {"v": FORMAT_VERSION, "r": header.address.registry, "K": cluster, "e": epoch}
    fields.update(g=generation, i=lease)
    if soon:
        fields["w"] = True
    fields.update(x=header.tag, k=header.kinds)
    if header.terms:
        fields["t"] = dict(header.terms)
    fields["m"] = header.made_at
    fields["n"] = header.inner_size
    if header.buffers:
        fields["b"] = header.buffers
    sealed = seal(fields)
    length = (len(sealed) + header.inner_size).to_bytes(_LENGTH, "little")
    tail = _tail(header.buffers) if header.buffers else _TUPLE1_REDUCE_STOP
    return b"".join([PREFIX, length, sealed, *inner, tail])


def _tail(buffers: int) -> bytes:
    """What ends a payload with out-of-band buffers: the call of the entry point with the body and these."""
    return _MARK + _NEXT_BUFFER * buffers + _TUPLE + _TUPLE2_REDUCE_STOP


def find(data: Any) -> Found:
    """Take a whole payload apart and check all that can be checked without unpickling. Trailing bytes are left alone.

    Raises:
        EnvelopeError: `data` is no payload, is cut short, altered, or of an unknown version.
    """
    view = memoryview(data)
    if view.format != "B" or view.ndim != 1:
        view = view.cast("B")
    if not is_payload(view):
        raise EnvelopeError(
            "these bytes are not a payload of safe_refs: they don't start as one; check what was stored, or sent"
        )
    if len(view) < _BODY:
        raise EnvelopeError("the payload is cut short: it ends within its first bytes; get it again, whole")
    size = int.from_bytes(view[len(PREFIX) : _BODY], "little")
    body = view[_BODY : _BODY + size]
    if len(body) < size:
        raise EnvelopeError(
            f"the payload is cut short: its body should have {size} bytes and has {len(body)}; get it again, whole"
        )
    found = open_body(body)
    if found.header.buffers > len(view) - _BODY - size:
        raise EnvelopeError(
            "the payload is cut short or altered: it names more buffers than it has bytes left; get it again, whole"
        )
    tail = _tail(found.header.buffers) if found.header.buffers else _TUPLE1_REDUCE_STOP
    if view[_BODY + size : _BODY + size + len(tail)] != tail:
        raise EnvelopeError(
            "the payload is cut short or altered: its last bytes are not those of a payload; get it again, whole"
        )
    return found


def open_body(body: Any) -> Found:
    """Take a payload's body (header and inner pickle) apart.

    Raises:
        EnvelopeError: it is cut short, altered, or of an unknown version.
    """
    view = memoryview(body)
    fields, end = unseal(view, "the payload")
    if fields.get("v") != FORMAT_VERSION:
        check_version(fields, "the payload")
    address = unpack_address(fields, "the payload")
    tag, kinds, terms, made_at, size, buffers = (fields.get(key) for key in "xktmnb")
    terms, buffers = terms or {}, buffers or 0
    if (
        not (isinstance(tag, bytes) and len(tag) == 8)
        or not (isinstance(kinds, str) and len(kinds) <= MOST_REFERENCES)
        or not (terms == {} or _are_terms(terms))
        or not (isinstance(made_at, float) and math.isfinite(made_at))
        or not (type(size) is int and size >= 0)
        or not (type(buffers) is int and buffers >= 0)
    ):
        raise EnvelopeError(
            "the payload is altered: its header lacks a part, or has one that makes no sense; get it again, unchanged"
        )
    if len(view) - end < fields["n"]:
        raise EnvelopeError(
            f"the payload is cut short: its pickle should have {size} bytes and has {len(view) - end}; get it again, whole"
        )
    if fields.get("s"):
        raise EnvelopeError("the payload is signed, which this release of safe_refs can't check: install a newer one")
    header = Header(address, fields["x"], kinds, terms, made_at, fields["n"], buffers, signed=False)
    return Found(header, view[end : end + header.inner_size])
