"""Wrote the golden files of format version 1. Kept to show where they come from; never run again for a version that is out.

Run as `python -m tests.golden.make`. A new format version gets new files beside the old ones.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import safe_refs
from safe_refs import envelope
from safe_refs.envelope import Header, LeaseAddress
from safe_refs.slots import slot

HERE = Path(__file__).parent
ADDRESS = LeaseAddress(
    "default", bytes(range(100, 128)), b"\x01\x02\x03\x04\x05\x06\x07\x08", 1, bytes(range(200, 216))
)

TAG = b"tag-tag-"


class Slot:
    """Pickles as the slot of a reference."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return slot, (TAG, self.number)


def write(name: str, header: Header, inner: bytes, buffers: tuple[bytes, ...] = ()) -> None:
    """Write a payload and, beside it, what must be read from it."""
    data = envelope.wrap(header, [inner])
    info = safe_refs.inspect(data)
    expected = {
        key: getattr(info, key)
        for key in ("lease_id", "registry", "generation", "cluster", "terms", "made_at", "pickle_size", "buffers")
    }
    expected["buffer_contents"] = [buffer.hex() for buffer in buffers]
    expected["loaded"] = repr(safe_refs.loads(data, resolve=False, buffers=buffers))
    (HERE / f"{name}.bin").write_bytes(data)
    (HERE / f"{name}.json").write_text(json.dumps(expected, indent=1) + "\n")


def main() -> None:
    """Write them all."""
    one = pickle.dumps(Slot(0), 5)
    write("payload-v1-one", Header(ADDRESS, TAG, "o", {}, 1.75e9, len(one), 0, signed=False), one)
    many = pickle.dumps({"a": [Slot(0), Slot(1)], "b": Slot(0)}, 5)
    terms = {"ttl": 60.0, "uses": 3, "label": "nightly \u00fc"}
    other = ADDRESS._replace(registry="team-a", generation=70000)
    write("payload-v1-terms", Header(other, TAG, "oo", terms, 1.75e9, len(many), 0, signed=False), many)
    hundreds = pickle.dumps([Slot(number) for number in range(700)], 5)
    write("payload-v1-many", Header(ADDRESS, TAG, "o" * 700, {}, 1.75e9, len(hundreds), 0, signed=False), hundreds)
    seen: list[pickle.PickleBuffer] = []
    outside = pickle.dumps(
        [pickle.PickleBuffer(b"first"), Slot(0), pickle.PickleBuffer(b"second")], 5, buffer_callback=seen.append
    )
    header = Header(ADDRESS, TAG, "o", {}, 1.75e9, len(outside), 2, signed=False)
    write("payload-v1-buffers", header, outside, (b"first", b"second"))
    soon = ADDRESS._replace(soon=True)
    write("payload-v1-soon", Header(soon, TAG, "o", {}, 1.75e9, len(one), 0, signed=False), one)
    handle = safe_refs.SafeRef[Any](ADDRESS, 5)
    (HERE / "handle-v1-slot5.bin").write_bytes(bytes(handle))
    expected = {"text": str(handle), "lease_id": handle.lease_id, "slot": 5}
    (HERE / "handle-v1-slot5.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
