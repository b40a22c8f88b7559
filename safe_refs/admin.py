"""The registry as a whole: `init`, `settings` and `shutdown`, and what it holds: `leases` and `stats`.

What always holds: what is listed never includes anything that resolves a lease.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from . import _settings, asks, config, payloads
from ._settings import Settings
from .config import Deadline
from .errors import RegistryUnavailableError
from .registry.records import LeaseInfo, RegistryStats

if TYPE_CHECKING:
    from .registry.sessions import Session

_UNDONE_S = 2.0  # for putting limits back
_PAGE = 1000  # rows of one call to the registry
Sort = Literal["age", "expires", "references", "bytes"]


@payloads.outside
def leases(
    *,
    label: str | None = None,
    job: str | None = None,
    min_age_s: float | timedelta | None = None,
    min_bytes: float | None = None,
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
        min_age_s: only those at least so many seconds (or a `timedelta`) old.
        min_bytes: only those that hold at least so many bytes.
        sort: `age`: oldest first; `expires`: soonest first, those without a ttl last; `references`, `bytes`: most first.
        limit: at most so many; None for all.
        sizes: look up the objects' sizes; costs a question to each owner.
        registry: name of the registry; default from `init` or `SAFE_REFS_REGISTRY`.
        timeout: seconds to wait for the registry, for each thousand.

    Raises:
        ValueError: `job`, `sort` or `limit` is none of those, or a number is below zero.
        TypeError: an argument is of the wrong type.
        RegistryUnavailableError: no Ray connection, or no answer in time.
    """
    query = asks.query(label, job, min_age_s, min_bytes, sort)._replace(limit=_PAGE)
    most, sizes = None if limit is None else config.positive(limit, "limit"), config.flag(sizes, "sizes")
    from .registry import whole

    found = payloads.client().registry(_settings.registry_name(registry))
    return whole.leases(found, query, most, sizes, _settings.timeout_s(timeout))


@payloads.outside
def stats(*, registry: str | None = None, timeout: float | timedelta | None = None) -> RegistryStats | None:
    """Figures of the registry since it started; None if it doesn't run.

    Args:
        registry: its name; default from `init` or `SAFE_REFS_REGISTRY`.
        timeout: seconds to wait for it.

    Raises:
        RegistryUnavailableError: no Ray connection, or no answer in time.
    """
    from .registry import whole

    return whole.stats(payloads.client().registry(_settings.registry_name(registry)), _settings.timeout_s(timeout))


@payloads.outside
def init(
    registry: str | None = None,
    *,
    shards: int | None = None,
    replicas: int | None = None,
    timeout: float | timedelta | None = None,
    durable_timeout: float | timedelta | None = None,
    ttl: float | timedelta | None = None,
    require_ttl: bool | None = None,
    wait: bool | None = None,
    max_leases: float | None = None,
    max_references: float | None = None,
    max_bytes: float | None = None,
    max_leases_per_job: float | None = None,
    max_references_per_job: float | None = None,
    max_bytes_per_job: float | None = None,
    max_tombstones: int | None = None,
    tombstone_age_s: float | timedelta | None = None,
    sweep_s: float | timedelta | None = None,
) -> RegistryStats:
    """Choose the registry and the settings, and start the registry if it doesn't run. Without this, the first `dumps` does so.

    In a driver this holds for all tasks and actors of its job, in a task or an actor for that process. It takes the place of all that
    an earlier `init` there said, and lasts as long as the connection to Ray. If it raises, the settings are what they were. If tasks
    or actors of the job have used safe_refs before, it returns about half a second later, when all of them go by it.

    Args:
        registry: name of the registry that new leases go to; several may run in a cluster.
        shards: how many actors the registry has; 1 unless set, or as many as replicas. More than it has now lets a running registry
            grow: leases move while calls go on, and this returns when all have. It can't be fewer than it has.
        replicas: how many of them hold each lease; 1 unless set. With 2 or more a crash of a shard, or of its node, costs nothing. A
            running registry keeps what it has.
        timeout: seconds that calls wait for the registry, unless the call says otherwise.
        durable_timeout: seconds that `durable=True` waits until the objects exist and have been copied; 600 unless set.
        ttl: seconds to live of leases that are made without a ttl; `math.inf` for no limit, which is so without this, too.
        require_ttl: True refuses leases without a ttl (`ValueError`).
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

    In a worker's setup hook (`worker_process_setup_hook`) this sets the process's settings only, because Ray can't call actors there.
    The registry starts, if it doesn't run, with the first call that needs it.

    The limits, from `max_leases` on, are the registry's. Those that are given change, on a running registry too; the others stay as
    they are. `math.inf` takes a limit away.

    Returns:
        The registry's figures; in a setup hook all are 0.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: one isn't allowed; or the registry runs with other replicas, or more shards.
        RegistryUnavailableError: no Ray connection, or no answer in time.
    """
    arguments = dict(locals())
    given = _settings.checked(arguments)
    config.check_topology(given.get("shards") or given.get("replicas") or 1, given.get("replicas") or 1)
    from . import assembly

    if assembly.is_setting_up():
        _settings.keep(given)
        return RegistryStats(_settings.current().registry, 0, 0.0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    with _one_init:
        return _begin(assembly.client(), given)


# One `init` of this process at a time, as each decides what all of them have said. Re-entrant: a signal handler may call it.
_one_init = threading.RLock()


def _begin_anew() -> None:
    """A forked child has none of the threads, one of which may hold the lock."""
    global _one_init
    _one_init = threading.RLock()


os.register_at_fork(after_in_child=_begin_anew)


def _begin(client: Session, given: Mapping[str, Any]) -> RegistryStats:
    """Have the registry run as it was said, tell the job, and keep it here; the registry's figures. Nothing is kept if it raises."""
    from . import assembly
    from .registry import whole

    wishes, for_job = _settings.wished(given)
    found = client.registry(wishes.registry)
    limits = {name: value for name, value in given.items() if config.BY_NAME[name].of_registry}
    while True:
        deadline = Deadline(time.monotonic() + wishes.timeout_s, wishes.timeout_s)
        assembly.ensure(found, given.get("shards"), wishes, deadline)
        found.identify(deadline)
        before = assembly.change_limits(found, limits, deadline) if limits else {}
        try:
            figures = whole.stats(found, deadline.timeout_s)
            if figures is not None:  # else somebody has shut it down in between
                _settings.publish(for_job, deadline)
                _settings.keep(given)
                return figures
        except BaseException:
            if before:
                with contextlib.suppress(RegistryUnavailableError):
                    assembly.change_limits(found, before, Deadline(time.monotonic() + _UNDONE_S, _UNDONE_S))
            raise
        found.forget()


@payloads.outside
def shutdown(registry: str | None = None, *, force: bool = False, timeout: float | timedelta | None = None) -> int:
    """Release every lease of the registry, and end it. References already resolved stay good.

    Args:
        registry: its name; default as for a new lease: the one that `init` named, here or in the driver of this job, else
            `SAFE_REFS_REGISTRY`, else `default`.
        force: True ends leases of other jobs, too; without it, a registry that holds some is left alone.
        timeout: seconds to wait for it.

    Returns:
        How many leases that ended; 0 if it wasn't running.

    Raises:
        ValueError: other jobs have leases there, and `force` isn't given. Nothing was ended.
        RegistryUnavailableError: no Ray connection, or no answer in time. Then no lease has ended, or all have or are about to.
    """
    from .registry import whole

    force, deadline = config.flag(force, "force"), _settings.deadline(timeout)
    return whole.shutdown(payloads.client().registry(_settings.registry_name(registry)), deadline, force=force)


def settings() -> Settings:
    """The settings that hold in this process now, and for each who said so; see docs/settings.md.

    Raises:
        ValueError: a variable of the environment has a value that it can't have.
        RegistryUnavailableError: Ray's control service does not answer, and what the job's driver said is not known here.
    """
    return _settings.current()
