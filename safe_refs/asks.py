"""What a process asks of leases that exist: resolve, release, renew, or make them durable, at whichever registry they are."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from . import _settings, callers, config, terms, threads
from ._ray import serializing, workers
from .config import Deadline
from .envelope import Header, LeaseAddress
from .errors import EnvelopeError, RegistryUnavailableError
from .payloads import client
from .registry import known, records
from .registry.records import LeaseInfo, Query
from .slots import KINDS
from .spending import Use, give_back

if TYPE_CHECKING:
    from .registry.requests import Wanted
    from .registry.sessions import Session

_JOB = re.compile("[0-9a-f]{8}")
_SLICE = 200  # leases that one call ends, in 2 to 10 ms of the shard's time


def release_later(address: LeaseAddress) -> None:
    """Ask for a lease's end without waiting for it, for clearing up after a failure. Never raises."""
    try:
        here = client()
    except Exception:  # Ray is gone from this process, and with it all that it asked for
        return
    here.registry(address.registry).release_later([address.lease])


def session() -> Session:
    """`client`, for something that is asked of a payload."""
    try:
        return client()
    except RegistryUnavailableError as error:
        raise workers.for_payload(error) from None


def resolve(
    address: LeaseAddress, timeout: float | timedelta | None, *, slot: int | None, take: bool, use: bytes = b""
) -> list[Any]:
    """The references of a lease, or the one in a slot; errors as of `registry.verbs.resolve`. Calls of one `use` count as one use."""
    from .registry.verbs import wanted

    try:
        here = known.sessions.get(workers.connection()) or client()
    except RegistryUnavailableError as error:
        raise workers.for_payload(error) from None
    if any(map(vars(serializing.local).get, serializing.MARKS)):
        with serializing.put_aside():
            return resolve(address, timeout, slot=slot, take=take, use=use)
    row = wanted(address, here, slot=slot, take=take, use=use, late=_give_back_late)
    return here.sender.resolve(row, _settings.deadline(timeout))


def _give_back_late(row: Wanted, refs: list[Any]) -> None:
    """The answer to a resolve whose caller a signal handler's exception has taken away: nobody has had that use."""
    give_back([Use(row.address, row.use, row.take, refs)], None)


@serializing.outside
def resolve_many(
    addresses: Sequence[LeaseAddress], timeout: float | timedelta | None, *, take: bool, uses: Sequence[bytes]
) -> list[list[Any]]:
    """The references of several leases, in one call to each shard that holds some: all, or it raises. `uses` as for `resolve`."""
    if not addresses:
        return []
    from .registry.verbs import wanted

    here = session()
    rows = [
        wanted(address, here, slot=None, take=take, use=use, late=_give_back_late)
        for address, use in zip(addresses, uses, strict=True)
    ]
    found: dict[int, list[Any]] = {}
    try:
        here.sender.resolve_many(rows, _settings.deadline(timeout), found)
    except BaseException as error:
        some = [(rows[place], refs) for place, refs in found.items() if rows[place].spends]
        back = partial(give_back, [Use(row.address, row.use, take, refs) for row, refs in some], timeout)
        found.clear()  # the error keeps this frame
        some.clear()
        if isinstance(error, Exception):
            back()
        else:
            threads.later(back)
        del back
        raise
    return [found[place] for place in range(len(rows))]


async def reach(asked: terms.Asked) -> None:
    """See to it that this process knows its registry, so that nothing has to wait for that in an event loop."""
    here = known.current() if known.sessions else None
    if here is None or here.registry(asked.registry).identity is None:
        deadline = Deadline(time.monotonic() + asked.timeout_s, asked.timeout_s)
        await callers.to_thread(lambda: client().registry(asked.registry).identify(deadline), asked.timeout_s)


async def know_settings(timeout: float | timedelta | None = None) -> None:
    """See to it that this process knows its settings, so that nothing has to wait for that in an event loop."""
    if not _settings.is_fresh():
        await callers.to_thread(partial(_settings.current, timeout), config.first_s(timeout))


async def waits_s(timeout: float | timedelta | None) -> float:
    """How long a call with this timeout may wait for the registry, in seconds."""
    await know_settings(timeout)
    return _settings.timeout_s(timeout)


async def resolve_async(
    address: LeaseAddress, timeout: float | timedelta | None, *, slot: int | None, take: bool, use: bytes = b""
) -> list[Any]:
    """`resolve`, awaited."""
    from .registry.verbs import wanted

    try:
        here = known.current() if known.sessions else None
    except RegistryUnavailableError as error:
        raise workers.for_payload(error) from None
    if here is None:
        here = await callers.to_thread(session, await waits_s(timeout))
    await know_settings(timeout)
    return await here.resolve_async(wanted(address, here, slot=slot, take=take, use=use), _settings.deadline(timeout))


def release(addresses: Iterable[LeaseAddress], timeout: float | timedelta | None) -> int:
    """End leases; how many that ended. Those that had ended before, or were lost, count 0.

    Raises:
        WrongClusterError: one is another cluster's; nothing was released.
    """
    try:
        here = known.sessions.get(workers.connection()) or client()
    except RegistryUnavailableError as error:
        raise workers.for_payload(error) from None
    deadline = _settings.deadline(timeout)
    if any(map(vars(serializing.local).get, serializing.MARKS)):
        with serializing.put_aside():
            return release(addresses, timeout)
    by_registry: dict[str, list[bytes]] = {}
    for address in addresses:
        if address.cluster != here.connection.cluster:
            here.check_cluster(address)
        by_registry.setdefault(address.registry, []).append(address.lease)
    count = 0
    for registry, leases in by_registry.items():
        count += here.sender.release(registry, leases, deadline)
        terms.ended(registry, leases)
    return count


@serializing.outside
def release_ids(leases: Sequence[bytes], name: str | None, timeout: float | timedelta | None) -> int:
    """End leases of a registry (None: this process's) by their bare ids; how many that ended."""
    registry = _settings.registry_name(name)
    count = client().sender.release(registry, leases, _settings.deadline(timeout))
    terms.ended(registry, leases)
    return count


def query(
    label: str | None = None,
    job: str | None = None,
    min_age_s: float | timedelta | None = None,
    min_bytes: float | None = None,
    sort: str = "age",
    older_than: float | timedelta | None = None,
) -> Query:
    """Which live leases a caller means, and in which order: checked.

    Raises:
        TypeError: one of them is of the wrong type.
        ValueError: `job` is no job's id, `sort` no order, or a number is below zero.
    """
    terms.checked(None, label=label)
    if job is not None and not isinstance(job, str):
        raise TypeError(f"job must be a job's id, a string, not {type(job).__name__}")
    if job is not None and not _JOB.fullmatch(job):
        raise ValueError(f"job must be a job's id, 8 hexadecimal digits as `leases()` shows them, not {job!r:.80}")
    age = None if older_than is None else config.seconds(older_than, "older_than")
    if min_age_s is not None and (min_age_s != 0 or min_age_s is False):
        age = config.seconds(min_age_s, "min_age_s")
    if min_bytes is not None and (isinstance(min_bytes, bool) or not isinstance(min_bytes, (int, float))):
        raise TypeError(f"min_bytes must be a number, not {type(min_bytes).__name__}")
    if min_bytes is not None and not min_bytes >= 0:
        raise ValueError(f"min_bytes must be at least 0, not {min_bytes}")
    if sort not in ("age", "expires", "references", "bytes"):
        raise ValueError(f"sort must be 'age', 'expires', 'references' or 'bytes', not {sort!r:.80}")
    return Query(label, job, age, min_bytes, sort)


@serializing.outside
def release_where(
    chosen: Query, registry: str | None, timeout: float | timedelta | None, *, dry_run: bool = False
) -> int:
    """End the live leases that a query chooses; how many that ended, or would. Arguments as of `registry.whole.release_where`."""
    from .registry import whole

    found = client().registry(_settings.registry_name(registry))
    return whole.release_where(found, chosen._replace(limit=_SLICE), dry_run, _settings.deadline(timeout))


def release_rows(rows: Iterable[LeaseInfo], timeout: float | timedelta | None) -> int:
    """End the leases that rows of `leases()` show; how many that ended.

    Raises:
        ValueError: a row does not come from `leases()`; nothing was released.
    """
    marks: dict[str, list[bytes]] = {}
    for row in rows:
        if not row._mark:
            raise ValueError(
                f"lease {row.short_id} can be released by a row that leases() gave, not by one made by hand"
            )
        marks.setdefault(row.registry, []).append(row._mark)
    count, until = 0, _settings.deadline(timeout)
    for registry, theirs in marks.items():
        for start in range(0, len(theirs), _SLICE):
            some = Query(marks=frozenset(theirs[start : start + _SLICE]))
            count += release_where(some, registry, until.left_s())
    return count


# `LeaseInfo` stands below this file, and is what `leases()` gives.
records.release_row = lambda row, timeout: release_rows([row], timeout)


@serializing.outside
def renew(
    address: LeaseAddress, ttl: float | timedelta, timeout: float | timedelta | None, *, lengthens: bool = False
) -> None:
    """Let a lease live so long from now; errors, and `lengthens`, as of `registry.verbs.renew`."""
    from .registry import verbs

    seconds, here = config.ttl_s(ttl), session()
    if seconds is None and _settings.current().require_ttl:
        raise ValueError("a lease needs a time to live here, as require_ttl says: renew it for some seconds")
    here.check_cluster(address)
    verbs.renew(here.registry(address.registry), address, seconds, _settings.deadline(timeout), lengthens=lengthens)


@serializing.outside
def expires_in_s(address: LeaseAddress, timeout: float | timedelta | None) -> float | None:
    """Seconds until a lease's ttl runs out; None without one; errors as of `registry.verbs.expires_in_s`."""
    from .registry import verbs

    here = session()
    here.check_cluster(address)
    return verbs.expires_in_s(here.registry(address.registry), address, _settings.deadline(timeout))


@serializing.outside
def make_durable(addresses: Sequence[LeaseAddress], timeout: float | timedelta | None) -> None:
    """Have the registry hold copies in place of what leases hold; errors as of `durability.client.Copies`."""
    from . import assembly

    session()
    assembly.client().copies.make_durable(addresses, _settings.durable_deadline(timeout))


def check_kinds(header: Header) -> None:
    """Refuse references that this release doesn't know.

    Raises:
        EnvelopeError: the payload holds some.
    """
    unknown = set(header.kinds) - KINDS
    if unknown:
        raise EnvelopeError(
            f"the payload holds references of kind {', '.join(sorted(unknown))[:40]!r}, which this release of safe_refs doesn't "
            "know: install the release that wrote it, or a newer one"
        )
