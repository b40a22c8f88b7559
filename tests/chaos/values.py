"""Values that say which object they are, and show if a byte of them has changed. Pure.

A value is a head (number of the payload it was made for, slot, length, checksum) and random bytes. Whoever reads it knows which it
expects, so that another's object is told from an altered one.
"""

from __future__ import annotations

import random
import struct
import zlib
from typing import NamedTuple

_HEAD = struct.Struct(">QIQI")


class Stamp(NamedTuple):
    """Which object a value is: the payload that it was first made for, and its slot there."""

    payload: int
    slot: int


def make(stamp: Stamp, size: int) -> bytes:
    """The value of an object, of `size` bytes; always the same."""
    body = random.Random(f"{stamp.payload}.{stamp.slot}").randbytes(max(0, size - _HEAD.size))
    return _HEAD.pack(stamp.payload, stamp.slot, len(body), zlib.crc32(body)) + body


def complaint(value: object, expected: Stamp) -> str:
    """What is wrong with a value; empty if nothing is."""
    if not isinstance(value, bytes) or len(value) < _HEAD.size:
        return f"no value of the storm's, but {type(value).__name__}"
    payload, slot, length, checksum = _HEAD.unpack_from(value)
    if (payload, slot) != expected:
        return f"the object {payload}.{slot} in place of {expected.payload}.{expected.slot}"
    body = value[_HEAD.size :]
    if len(body) != length or zlib.crc32(body) != checksum:
        return f"the object {payload}.{slot}, altered"
    return ""
