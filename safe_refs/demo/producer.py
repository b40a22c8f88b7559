"""The producer: puts each file into the object store and sends a payload with its reference through the channel.

What always holds: it keeps no reference itself, so that only the lease holds an object while its payload is under way; it stays alive
until the consumer has checked every file and the store has been measured, since an object dies with the process that put it (which
would hide both an object that came too late and one that stayed behind); no more than `in_flight_bytes` are
under way at a time, unless a single file is larger.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import child
from .channel import ANSWERS, PAYLOADS, Channel
from .failure import DemoError

END = b""  # in the place of a payload: there are no more
DONE = b"done"  # an answer: this file is checked and released
FINISHED = b"finished"  # an answer: all are
LEAVE = b"leave"  # from the demo itself: the store is measured


def produce(channel: Channel, orders: Mapping[str, Any]) -> None:
    """Hand over all files, and wait until the consumer has finished and the demo has no more need of this process."""
    under_way: deque[int] = deque()
    for name, path in orders["files"]:
        data = Path(path).read_bytes()
        size = len(data)
        while under_way and sum(under_way) + size > orders["in_flight_bytes"]:
            _expect(channel, DONE)
            under_way.popleft()
        channel.put(PAYLOADS, payload_of(name, data))
        under_way.append(size)
        child.tell("sent", bytes=size)
        del data
    channel.put(PAYLOADS, END)
    for _ in under_way:
        _expect(channel, DONE)
    _expect(channel, FINISHED)
    _expect(channel, LEAVE)


def payload_of(name: str, data: bytes) -> bytes:
    """Put data into the object store; a payload with its name, size, hash and reference, which now alone holds it there."""
    import ray

    import safe_refs

    digest = hashlib.sha256(data).hexdigest()
    item = {"name": name, "size": len(data), "sha256": digest, "ref": ray.put(data)}
    return safe_refs.dumps(item, label="demo")


def _expect(channel: Channel, wanted: bytes) -> None:
    answer = channel.get(ANSWERS, child.STALL_TIMEOUT_S)
    if answer != wanted:
        raise DemoError(f"the answer was {answer!r} where {wanted!r} was due")


def main() -> None:
    """Run as the child process that produces."""
    child.run(produce)


if __name__ == "__main__":
    main()
