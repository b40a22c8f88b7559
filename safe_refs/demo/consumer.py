"""The consumer: another Ray job, which knows nothing of the files but what comes through the channel.

What always holds: it releases a lease only after it has checked the file, and answers only after it has released.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from . import child
from .channel import ANSWERS, PAYLOADS, Channel
from .producer import DONE, END, FINISHED

GET_TIMEOUT_S = 60.0


def consume(channel: Channel, orders: Mapping[str, Any]) -> None:
    """Load, check and release whatever comes, until the producer says that it was all."""
    import safe_refs

    while (payload := channel.get(PAYLOADS, child.STALL_TIMEOUT_S)) != END:
        item = safe_refs.loads(payload)
        size, intact = check(item)
        name = item["name"]
        # Drop the reference before the lease: from then on nobody holds the object.
        del item
        safe_refs.release(payload)
        channel.put(ANSWERS, DONE)
        child.tell("checked", name=name, bytes=size, intact=intact)
    channel.put(ANSWERS, FINISHED)


def check(item: Mapping[str, Any]) -> tuple[int, bool]:
    """Fetch an item's data; its size in bytes, and whether size and SHA-256 are those that the producer wrote down."""
    import ray

    data = ray.get(item["ref"], timeout=GET_TIMEOUT_S)
    intact = len(data) == item["size"] and hashlib.sha256(data).hexdigest() == item["sha256"]
    return len(data), intact


def main() -> None:
    """Run as the child process that consumes."""
    child.run(consume)


if __name__ == "__main__":
    main()
