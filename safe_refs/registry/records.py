"""What is said of leases: terms, origins, listings, figures. Plain values, that travel between client and shard.

What always holds: nothing here resolves anything, and none of it knows Ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Terms(NamedTuple):
    """On what a lease ends by itself, and what it is called. None is without.

    Attributes:
        ttl: seconds to live, from the moment the registry holds it.
        uses: how often it may be resolved.
        label: a name for people.
        durable: where what it holds are the registry's own copies, what the tasks need that make them, as JSON.
    """

    ttl: float | None = None
    uses: int | None = None
    label: str | None = None
    durable: str | None = None


class Wish(NamedTuple):
    """That a lease be made durable.

    Attributes:
        env: what the tasks need that copy its objects, as JSON.
        ttl: seconds that it is to live from when it is durable; None for what it has.
        told: shards of which the maker has told the adopters itself, so that they needn't.
    """

    env: str
    ttl: float | None
    told: tuple[int, ...] = ()


class Origin(NamedTuple):
    """Who made a lease or ended it: job and node ids (hexadecimal), process id, and `file:line in function`.

    For a Ray Client the job and the node are its server's; its process runs on a machine that `source` names.
    """

    job: str
    node: str
    pid: int
    source: str

    def __str__(self) -> str:
        return f"pid {self.pid} on node {self.node[:8]}, job {self.job} ({self.source})"


def by_client(source: str, host: str) -> str:
    """A source line in a Ray Client, with the machine that it runs on."""
    return f"{source}{_BY_CLIENT}{host})"


def is_by_client(source: str) -> bool:
    """Whether a source line is a Ray Client's."""
    return _BY_CLIENT in source


_BY_CLIENT = " (Ray Client on "


@dataclass(frozen=True)
class LeaseInfo:
    """One live lease, as `leases()` lists it.

    Attributes:
        number: the how manieth lease of its registry it is, from 1; for paging.
        short_id: first eight hexadecimal digits of its id; resolves nothing.
        label: its label, or None.
        age_s: seconds since the registry took it.
        expires_in_s: seconds until its ttl runs out; None without one.
        uses_left: how often it can still be resolved; None without a limit.
        references: how many references it holds.
        size_bytes: bytes of the objects behind them that exist by now; None where that wasn't asked for.
        job: id of the job that made it.
        node: id of the node where that was; for a Ray Client, of that where its server runs.
        pid: id of the process there; for a Ray Client, of the process on its own machine.
        source: the source line, as `file:line in function`; for a Ray Client followed by its machine's name.
        hangs_on: the process that pinned it without owning the objects, as `pid … on node …`, if that takes them along when it is
            killed, as Ray's owners don't know of the registry yet; for a Ray Client its server, as `the Ray Client server of job …
            on node …`; None where all is well, which is nearly always.
        durable: whether it holds copies that are the registry's own.
    """

    number: int
    short_id: str
    label: str | None
    age_s: float
    expires_in_s: float | None
    uses_left: int | None
    references: int
    size_bytes: int | None
    job: str
    node: str
    pid: int
    source: str
    hangs_on: str | None = None
    durable: bool = False


@dataclass(frozen=True)
class RegistryStats:
    """Figures of a registry since it started, as `stats()` gives them.

    Attributes:
        registry: its name.
        generation: which start of it this is, counted from 1.
        uptime_s: seconds since it started.
        live_leases: leases held now.
        live_references: references in them.
        pinned: leases ever taken.
        resolved: times a lease was resolved.
        released: leases ended by release or take.
        expired: leases ended by their ttl.
        used_up: leases ended by their uses.
        owner_gone: leases ended because their owners died.
        lost: leases lost with the process that they hung on (see `LeaseInfo.hangs_on`), one for each replica that lost it.
        tombstones: ended leases that it still remembers.
        shards: how many actors the registry has.
        replicas: how many of them hold each lease. The counts above are of leases, not of their replicas.
        recovering: shards that can't be reached now, or don't yet hold again what they held before a restart.
        unsettled: leases, of one replica at least, of which the owners are still to learn who holds their objects; those that hang
            on a process (see `LeaseInfo.hangs_on`), and those resolved a moment ago.
    """

    registry: str
    generation: int
    uptime_s: float
    live_leases: int
    live_references: int
    pinned: int
    resolved: int
    released: int
    expired: int
    used_up: int
    owner_gone: int
    tombstones: int
    shards: int = 1
    replicas: int = 1
    recovering: int = 0
    lost: int = 0
    unsettled: int = 0


class Query(NamedTuple):
    """Which live leases to list, and in which order. None is any.

    Attributes:
        label: of this label.
        job: made by this job.
        min_age_s: at least so old.
        min_bytes: holding at least so many bytes; needs sizes.
        sort: `age` (oldest first), `expires` (soonest first; those without a ttl last), `references` or `bytes` (most first).
        after: the last row of the page before, as (what it was sorted by, its number); None for the first page.
        limit: rows of a page.
    """

    label: str | None = None
    job: str | None = None
    min_age_s: float | None = None
    min_bytes: int | None = None
    sort: str = "age"
    after: tuple[float, int] | None = None
    limit: int = 1000
