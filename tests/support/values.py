"""Values that say which they are, and what comes of trying to read one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import ray

import safe_refs

MB = 2**20
FLOATS = 20_000
VALUE_BYTES = 8 * FLOATS  # so that they lie in the store


def value(number: int) -> bytes:
    """A value that carries a number, of `VALUE_BYTES`."""
    return number.to_bytes(8, "big") * FLOATS


def got(ref: Any, timeout: float = 30) -> Any:
    """The value behind a reference."""
    return ray.get(ref, timeout=timeout)


def outcome(find: Callable[[], Any]) -> int | str:
    """The number in a value; or the name of the error."""
    try:
        return int.from_bytes(ray.get(find(), timeout=8)[:8], "big")
    except Exception as error:
        return type(error).__name__


def opens(payload: bytes) -> int | str:
    """The number that a payload of one reference leads to; or the name of the error."""
    return outcome(lambda: safe_refs.loads(payload))


def reads(ref: Any) -> int | str:
    """The number behind a reference; or the name of the error."""
    return outcome(lambda: ref)


def outcomes(payloads: Iterable[bytes], **how: Any) -> list[str]:
    """For each payload what loading it gives: the value, or the error's class."""
    found = []
    for payload in payloads:
        try:
            found.append(str(ray.get(safe_refs.loads(payload, **how), timeout=20)))
        except safe_refs.LeaseError as error:
            found.append(type(error).__name__)
    return found


def error_of(payload: bytes) -> type[Exception] | None:
    """The error that loading a payload raises, if it is one of a lease."""
    try:
        safe_refs.loads(payload)
    except safe_refs.LeaseError as error:
        return type(error)
    return None
