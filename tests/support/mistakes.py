"""Mistakes of a user, and how each is judged: `verdict` says what is wrong with the way in which safe_refs takes one.

A mistake is taken well if it raises exactly the documented type within two seconds, with a text of a few lines by which a stranger
can act, that gives nothing away: no lease's whole id, no handle's text, nothing of what is in a payload. It leaves nothing behind,
and ends nothing; to see that is up to the test.

What always holds: a mistake that raises nothing is judged wrong, whatever it returned.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import safe_refs
from safe_refs import SafeRef

MOST_S = 2.0
LONGEST = 600  # characters of a text that somebody reads
SECRET = "only-for-those-who-load-it"  # noqa: S105 # in each payload, in no error
_WINDOW = 12  # characters of a handle's text that would give something away

GOLDEN = Path(__file__).parents[1] / "golden"


class Given(NamedTuple):
    """What a user has when the mistake is made. Without Ray, `ref` is None.

    Attributes:
        ref: a reference.
        payload: of `{"secret": …, "ref": ref}`.
        handle: another lease's.
        strange: a payload of another cluster.
    """

    ref: Any
    payload: bytes
    handle: SafeRef[Any]
    strange: bytes


class Mistake(NamedTuple):
    """One mistake.

    Attributes:
        name: what it is, in a few words.
        do: makes it. What it returns is awaited, or entered as a context manager.
        error: the type that is documented for it.
        says: a pattern of the piece of the text that says what to do.
    """

    name: str
    do: Callable[[Given], Any]
    error: type[BaseException]
    says: str


def strange() -> bytes:
    """A payload of a cluster that nobody is connected to."""
    return (GOLDEN / "payload-v1-one.bin").read_bytes()


def given() -> Given:
    """What a user has who is connected: two leases, which `end` ends."""
    import ray

    ref = ray.put(SECRET)
    payload = safe_refs.dumps({"secret": SECRET, "ref": ref})
    return Given(ref, payload, safe_refs.pin(ref), strange())


def end(of: Given) -> int:
    """End the leases; 2 if the mistakes have ended none."""
    return safe_refs.release([of.payload, of.handle])


def without_ray() -> Given:
    """What a user has whose process isn't connected."""
    payload = strange()
    return Given(None, payload, safe_refs.inspect(payload).handles[0], payload)


def verdict(mistake: Mistake, given: Given) -> str:
    """What is wrong with how safe_refs takes a mistake; empty if nothing is."""
    begun = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = _used(mistake.do(given))
    except BaseException as error:
        took_s, found = time.monotonic() - begun, error
    else:
        return f"{mistake.name}: taken silently, for {result!r:.100}"
    text = str(found)
    wrong = []
    if type(found) is not mistake.error:
        wrong.append(f"raises {type(found).__name__}, not {mistake.error.__name__}")
    if took_s > MOST_S:
        wrong.append(f"took {took_s:.1f} s")
    if not re.search(mistake.says, text):
        wrong.append(f"does not say {mistake.says!r}")
    if len(text) > LONGEST:
        wrong.append(f"says {len(text)} characters")
    leaked = gives_away("".join(traceback.format_exception(found)), given)
    if leaked:
        wrong.append(f"gives away {leaked}")
    return f"{mistake.name}: {', '.join(wrong)}: {type(found).__name__}: {text:.400}" if wrong else ""


def gives_away(text: str, given: Given) -> str:
    """What of the secrets is in a text; empty if nothing is."""
    if SECRET in text:
        return "what is in the payload"
    for handle in (given.handle, *safe_refs.inspect(given.payload).handles):
        lease = handle.address.lease
        if handle.lease_id in text or repr(lease)[2:-1] in text:
            return "a lease's id"
        whole, beside = str(handle), str(SafeRef(handle.address._replace(lease=bytes(16))))
        for at in range(len(whole) - _WINDOW):
            piece = whole[at : at + _WINDOW]
            if piece not in beside and piece in text:
                return "a handle's text"
    return ""


def _used(result: Any) -> Any:
    """Use what a call has returned: await it, or enter it and leave."""
    if isinstance(result, SafeRef):
        return result
    if isinstance(result, AbstractAsyncContextManager) and not isinstance(result, AbstractContextManager):
        return asyncio.run(_entered(result))
    if isinstance(result, AbstractContextManager):
        with result:
            pass
        return result
    if inspect.isawaitable(result):
        return asyncio.run(_awaited(result))
    return result


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


async def _entered(manager: AbstractAsyncContextManager[Any]) -> Any:
    async with manager:
        return manager


def verdicts(mistakes: Iterable[Mistake], given: Given) -> list[str]:
    """What is wrong with how safe_refs takes them."""
    return list(filter(None, (verdict(each, given) for each in mistakes)))
