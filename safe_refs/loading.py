"""Opening payloads in other ways than `loads`: several at once, awaited, and as what plain `pickle` opens.

What always holds: either all objects are there, with the uses of leases that they have cost; or none, and the uses are given back.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pickle import loads as unpickle  # as it is now: see `pickling`
from typing import TYPE_CHECKING, Any

from . import _settings, asks, checks, envelope, pacing, spending
from .handle import SafeRef, mistaken, slot_values
from .spending import Use, new_use, plainly, reading, unless_opened, within

if TYPE_CHECKING:
    from typing_extensions import Buffer


def several(payloads: Iterable[Any]) -> list[Any]:
    """What `loads_many` is given.

    Raises:
        TypeError: it is one payload, or a handle.
    """
    if isinstance(payloads, SafeRef) and (wrong := mistaken(payloads)) is not None:
        raise wrong
    if isinstance(payloads, (bytes, bytearray, memoryview, str)):
        raise TypeError(f"loads_many takes an iterable of payloads, not one {type(payloads).__name__}: loads takes one")
    return list(payloads)


def load_all(
    datas: Sequence[Any],
    how: Mapping[str, Any],
    uses: list[Use],
    *,
    resolve: bool = True,
    take: bool = False,
    anchored: bool = False,
    timeout: float | timedelta | None = None,
) -> list[Any]:
    """What `loads_many` returns; and the uses of leases, for who may give them back later. If it raises, it has given them back."""
    for wrong in filter(None, map(mistaken, datas)):
        raise wrong
    found = [envelope.find(data) if envelope.is_payload(data) else None for data in datas]
    anchored = checks.flag(anchored, "anchored")
    headers, since = [each.header for each in found if each is not None], time.monotonic()
    leases = [header.address.lease for header in headers]
    resolve, take, timeout, until = within(leases, resolve, take, timeout)
    ids = [new_use(header, take) for header in headers]
    values = list(slot_values(headers, resolve, take, timeout, ids))
    if resolve:
        uses += [Use(each.address, use, take, refs) for each, use, refs in zip(headers, ids, values, strict=True)]
    values.reverse()
    loaded: list[Any] = []
    try:
        with unless_opened(uses, timeout):
            if resolve and headers:
                pacing.await_pace(headers, anchored, timeout, since)
            for data, each in zip(datas, found, strict=True):
                if each is None:
                    with plainly(data, resolve, take, until, uses):
                        loaded.append(unpickle(data, **how))
                else:
                    said: Any = {"inside": each.inner, "until": until, "uses": uses}
                    with reading(each.header, values.pop(), resolve, take=take, **said):
                        loaded.append(unpickle(each.inner, **how))
    except BaseException:
        del values, loaded  # the error keeps this frame
        raise
    return loaded


def load_many(
    datas: Sequence[Any],
    how: Mapping[str, Any],
    *,
    resolve: bool,
    take: bool,
    anchored: bool,
    timeout: float | timedelta | None,
) -> list[Any]:
    """What `loads_many` returns."""
    uses: list[Use] = []
    loaded = load_all(datas, how, uses, resolve=resolve, take=take, anchored=anchored, timeout=timeout)
    spending.opened(uses)
    return loaded


async def load_async(
    data: Any,
    how: Mapping[str, Any],
    uses: list[Use],
    *,
    resolve: bool = True,
    take: bool = False,
    anchored: bool = False,
    timeout: float | timedelta | None = None,
) -> Any:
    """What `loads` returns, awaited; `uses` as for `load_all`."""
    if (wrong := mistaken(data)) is not None:
        raise wrong
    take, resolve, anchored = (
        checks.flag(each, name) for each, name in ((take, "take"), (resolve, "resolve"), (anchored, "anchored"))
    )
    until = None if timeout is None else _settings.deadline(timeout)
    if not envelope.is_payload(data):
        with plainly(data, resolve, take, until):
            return unpickle(data, **how)
    header, inner = envelope.find(data)
    if not resolve:
        with reading(header, slot_values([header], resolve, take, timeout, [b""])[0], resolve, inside=inner):
            return unpickle(inner, **how)
    asks.check_kinds(header)
    use, since = new_use(header, take), time.monotonic()
    refs = await asks.resolve_async(header.address, timeout, slot=None, take=take, use=use)
    uses.append(Use(header.address, use, take, refs))
    try:
        await pacing.await_pace_async([header], anchored, timeout, since)
        with reading(header, refs, resolve, take=take, inside=inner, until=until, uses=uses):
            return unpickle(inner, **how)
    except BaseException:
        del refs  # the error keeps this frame
        await spending.give_back_async(uses, timeout)
        raise


def open_payload(body: bytes, buffers: Sequence[Buffer] = ()) -> Any:
    """Open a payload's body. Payloads call this when a plain `pickle.load` opens them; use `loads` yourself.

    The name is a part of the payload format, and stays.

    Raises:
        EnvelopeError: and others as from `loads`.
    """
    found = envelope.open_body(body)
    resolve, take, timeout, until = within([found.header.address.lease], resolve=True, take=False, timeout=None)
    use, since = new_use(found.header, take), time.monotonic()
    values = slot_values([found.header], resolve, take, timeout, [use])
    with reading(found.header, values[0], resolve, use, take, timeout, inside=found.inner, until=until):
        del values  # an error keeps this frame
        if resolve:
            pacing.await_pace((found.header,), False, timeout, since)
        return unpickle(found.inner, buffers=buffers or None)


open_payload.__module__ = "safe_refs"
