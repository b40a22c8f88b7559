"""The registry as a whole: `init` and `shutdown`, and what it holds: `leases` and `stats`.

What always holds: what is listed never includes anything that resolves a lease.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

from . import config, payloads
from .config import Limits
from .registry.records import LeaseInfo, Query, RegistryStats

_PAGE = 1000  # rows of one call to the registry
Sort = Literal["age", "expires", "references", "bytes"]


def leases(
    *,
    label: str | None = None,
    job: str | None = None,
    min_age_s: float | None = None,
    min_bytes: int | None = None,
    sort: Sort = "age",
    limit: int | None = 1000,
    sizes: bool = True,
    registry: str | None = None,
    timeout: float | timedelta | None = None,
) -> list[LeaseInfo]:
    """Live leases: who made them, where, how long ago, and what they hold. Asked for a thousand at a time.

    Args:
        label: only those with this label.
        job: only those made by this job (its id, 8 hexadecimal digits).
        min_age_s: only those at least so many seconds old.
        min_bytes: only those that hold at least so many bytes.
        sort: `age`: oldest first; `expires`: soonest first, those without a ttl last; `references`, `bytes`: most first.
        limit: at most so many; None for all.
        sizes: look up the objects' sizes; costs a question to each owner.
        registry: name of the registry; default from `init` or `SAFE_REFS_REGISTRY`.
        timeout: seconds to wait for the registry, for each thousand.

    Raises:
        ValueError: `sort` or `limit` is none of those.
        RegistryUnavailableError: no Ray connection, or no answer in time.
    """
    if sort not in ("age", "expires", "references", "bytes"):
        raise ValueError(f"sort must be 'age', 'expires', 'references' or 'bytes', not {sort!r}")
    most = None if limit is None else config.positive(limit, "limit")
    query = Query(label, job, min_age_s, min_bytes, sort, None, _PAGE)
    from .registry import whole

    found = payloads.client().registry(config.registry_name(registry))
    return whole.leases(found, query, most, sizes, config.timeout_s(timeout))


def stats(*, registry: str | None = None, timeout: float | timedelta | None = None) -> RegistryStats | None:
    """Figures of the registry since it started; None if it doesn't run.

    Args:
        registry: its name; default from `init` or `SAFE_REFS_REGISTRY`.
        timeout: seconds to wait for it.

    Raises:
        RegistryUnavailableError: no Ray connection, or no answer in time.
    """
    from .registry import whole

    return whole.stats(payloads.client().registry(config.registry_name(registry)), config.timeout_s(timeout))


def init(
    registry: str | None = None,
    *,
    shards: int | None = None,
    replicas: int | None = None,
    timeout: float | timedelta | None = None,
    durable_timeout: float | timedelta | None = None,
    ttl: float | timedelta | None = None,
    wait: bool | None = None,
    max_leases: int | None = None,
    max_references: int | None = None,
    max_bytes: int | None = None,
    max_leases_per_job: int | None = None,
    max_references_per_job: int | None = None,
    max_bytes_per_job: int | None = None,
    max_tombstones: int | None = None,
    tombstone_age_s: float | timedelta | None = None,
    sweep_s: float | timedelta | None = None,
) -> RegistryStats:
    """Choose the registry for this process and start it if it doesn't run. Without this, the first `dumps` does so.

    Args:
        registry: name of the registry that this process's leases go to; several may run in a cluster.
        shards: how many actors the registry has; 1 unless set, or as many as replicas. More than it has now lets a running registry
            grow: leases move while calls go on, and this returns when all have. It can't be fewer than it has.
        replicas: how many of them hold each lease; 1 unless set. With 2 or more a crash of a shard, or of its node, costs nothing. A
            running registry keeps what it has.
        timeout: seconds that calls wait for the registry, unless the call says otherwise.
        durable_timeout: seconds that `durable=True` waits until the objects exist and have been copied; 600 unless set.
        ttl: seconds to live of leases that this process makes without a ttl; without this, they have no limit.
        wait: False lets `dumps` and `pin` return before the registry holds what they pass on; see `flush`.
        max_leases: the most live leases it will hold; past this or another limit, `dumps` raises `RegistryFullError`.
        max_references: the most references in live leases together.
        max_bytes: the most bytes of the objects behind them, each object once. Each pin then costs a question to the owners.
        max_leases_per_job: the most live leases that any one job may have made.
        max_references_per_job: the most references in those.
        max_bytes_per_job: the most bytes of the objects behind those, each once.
        max_tombstones: how many ended leases it remembers, to say how they ended; 100,000 unless set.
        tombstone_age_s: for how many seconds it remembers them; a day unless set.
        sweep_s: seconds between two looks at whether owners still live; 1 unless set.

    The limits, from `max_leases` on, are the registry's: giving any sets them all (those not given to their defaults), on a running
    registry too.

    Returns:
        The registry's figures.

    Raises:
        ValueError: a limit isn't above zero; or the registry runs with other replicas, or more shards.
        RegistryUnavailableError: no Ray connection, or no answer in time.
    """
    shards = None if shards is None else config.positive(shards, "shards")
    replicas = None if replicas is None else config.positive(replicas, "replicas")
    config.check_topology(shards or replicas or 1, replicas or 1)
    if registry is not None:
        config.checked_name(registry)
    counts = {
        "max_leases": max_leases,
        "max_references": max_references,
        "max_bytes": max_bytes,
        "max_leases_per_job": max_leases_per_job,
        "max_references_per_job": max_references_per_job,
        "max_bytes_per_job": max_bytes_per_job,
        "max_tombstones": max_tombstones,
    }
    spans = {"tombstone_age_s": tombstone_age_s, "sweep_s": sweep_s}
    given: dict[str, Any] = {name: config.positive(value, name) for name, value in counts.items() if value is not None}
    given |= {name: config.seconds(value, name) for name, value in spans.items() if value is not None}
    config.keep(
        registry=registry,
        timeout=None if timeout is None else config.seconds(timeout, "timeout"),
        ttl=None if ttl is None else config.seconds(ttl, "ttl"),
        limits=Limits(**given) if given else None,
        wait=wait,
        durable_timeout=None if durable_timeout is None else config.seconds(durable_timeout, "durable_timeout"),
    )
    from . import assembly
    from .registry import whole

    name = config.registry_name(registry)
    while True:
        deadline = config.deadline()
        found = assembly.client().registry(name)
        assembly.ensure(found, shards, replicas, deadline)
        config.want(shards, replicas)  # only now, as it may have been refused
        found.identify(deadline)
        if given:
            whole.set_limits(found, config.limits(), deadline)
        figures = whole.stats(found, deadline.timeout_s)
        if figures is not None:  # else somebody has shut it down in between
            return figures
        found.forget()


def shutdown(registry: str | None = None, *, timeout: float | timedelta | None = None) -> int:
    """Release every lease of the registry, of all jobs, and end it. References already resolved stay good.

    Args:
        registry: its name; default from `init` or `SAFE_REFS_REGISTRY`.
        timeout: seconds to wait for it.

    Returns:
        How many leases that ended; 0 if it wasn't running.

    Raises:
        RegistryUnavailableError: no Ray connection, or no answer in time.
    """
    from .registry import whole

    return whole.shutdown(payloads.client().registry(config.registry_name(registry)), config.deadline(timeout))
