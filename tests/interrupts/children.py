"""What child processes of the tests do; importable, as `spawn` needs it to be."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import safe_refs


def serve(address: str, file: Path) -> None:
    """Connect, pass a reference on to itself, and write what came out."""
    import ray

    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    payload = safe_refs.dumps({"rows": ray.put([3])}, ttl=60)
    file.write_text(str(ray.get(safe_refs.loads(payload, take=True)["rows"], timeout=30)))


def try_plain() -> Any:
    return safe_refs.loads(safe_refs.dumps([1, 2]))


def try_loads(payload: bytes) -> str:
    try:
        safe_refs.loads(payload)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "good"
