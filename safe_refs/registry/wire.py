"""The plain part of a call to a shard, as bytes.

Ray passes bytes on as they are, while a tuple of small things costs its pickler a tenth of a whole call.
"""

from __future__ import annotations

from typing import Any

import msgpack

_NOT_TEXT = "surrogatepass"  # names of files may hold bytes that are no text


def packed(*values: Any) -> bytes:
    """Numbers, bytes, texts, None, and tuples of those, as bytes."""
    data: bytes = msgpack.packb(values, unicode_errors=_NOT_TEXT)
    return data


def unpacked(data: bytes) -> Any:
    """The tuple of what was packed."""
    return msgpack.unpackb(data, unicode_errors=_NOT_TEXT, use_list=False)
