"""What is said of leases: terms, origins, listings, figures. Plain values, that travel between client and shard.

What always holds: nothing here resolves anything, and none of it knows Ray.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

from ..bounds import AnySpan, Environment, Epoch, Mark, Name, OneOf, Order, Range, Whole
from ..bounds import Span as Seconds
from ..checks import shown
from ..config import Span


class Identity(NamedTuple):
    """Which start of a registry this is.

    Attributes:
        epoch: 8 random bytes; they change whenever leases may have been lost.
        generation: counts the epochs, from 1; for people.
    """

    epoch: Epoch
    generation: Annotated[int, Range(0, 2**64 - 1)]

    def to_bytes(self) -> bytes:
        """16 bytes, as Ray passes bytes quickest."""
        return self.epoch + self.generation.to_bytes(8, "big")

    @classmethod
    def from_bytes(cls, data: bytes) -> Identity:
        """What `to_bytes` gave."""
        return cls(data[:8], int.from_bytes(data[8:16], "big"))


class Terms(NamedTuple):
    """On what a lease ends by itself, and what it is called. None is without.

    Attributes:
        ttl: seconds to live, from the moment the registry holds it.
        uses: how often it may be resolved.
        label: a name for people.
        durable: of a lease that holds the registry's own copies: the environment that the copying tasks need, as JSON.
    """

    ttl: Seconds | None = None
    uses: Whole | None = None
    label: Name | None = None
    durable: Environment | None = None


NO_TERMS = Terms()


class Renewal(NamedTuple):
    """What a renewal makes of a lease's time, as the shard has decided that counts renewals.

    Attributes:
        number: which one it is of the lease, from 1.
        ttl: the ttl in the lease's terms from now on; None without one.
        given_s: seconds that the lease has left from this moment; None without a limit.
    """

    number: Whole
    ttl: Seconds | None
    given_s: AnySpan | None


class Origin(NamedTuple):
    """Who made a lease or ended it: job and node ids (hexadecimal), process id, and `file:line in function`.

    For a Ray Client the job and the node are its server's; its process runs on a machine that `source` names.
    """

    job: Name
    node: Name
    pid: Whole
    source: Name

    @property
    def process(self) -> str:
        """The process that must live: `pid 4711 on node 1a2b3c4d`; of a Ray Client, its server."""
        name = f"the Ray Client server of job {self.job}" if is_by_client(self.source) else f"pid {self.pid}"
        return shown(f"{name} on node {self.node[:8]}")

    def __str__(self) -> str:
        return shown(f"pid {self.pid} on node {self.node[:8]}, job {self.job} ({self.source})")


def by_client(source: str, host: str) -> str:
    """A source line in a Ray Client, with the machine that it runs on."""
    return f"{source}{_BY_CLIENT}{host})"


def is_by_client(source: str) -> bool:
    """Whether a source line is a Ray Client's."""
    return _BY_CLIENT in source


_BY_CLIENT = " (Ray Client on "


@dataclass(frozen=True, repr=False)
class LeaseInfo:
    """One live lease, as `leases()` lists it.

    Attributes:
        number: its ordinal number in its shard, from 1; for paging.
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
        depends_on: the process that the lease depends on: if that process is killed, the lease is lost. So it is where a process
            pinned references that it only borrowed, and the objects' owners don't know the registry yet. As `pid … on node …`, or
            for a Ray Client `the Ray Client server of job … on node …`; None where all is well, which is nearly always.
        durable: whether it holds copies that are the registry's own.
        registry: name of the registry that holds it.
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
    depends_on: str | None = None
    durable: bool = False
    registry: str = ""
    # By which the registry finds the lease again: see `listing.mark_of`.
    _mark: bytes = field(default=b"", repr=False, compare=False)

    def release(self, *, timeout: Span | None = None) -> int:
        """End this lease, as `release(payload)` does, without its payload. For many rows, `release(rows)` is quicker.

        Args:
            timeout: seconds to wait for the registry; default from `init` or `SAFE_REFS_TIMEOUT`.

        Returns:
            1 if this call ended it; 0 if it had ended, or was lost with its registry.

        Raises:
            RegistryUnavailableError: no Ray connection, or no answer in time.
        """
        return release_row(self, timeout)

    def __repr__(self) -> str:
        parts = (
            f"<LeaseInfo {self.short_id}" if self.label is None else f"<LeaseInfo {self.short_id} {self.label!r}",
            f"{self.references} reference(s)" + ("" if self.size_bytes is None else f" to {self.size_bytes} bytes"),
            f"{self.age_s:.1f} s old",
            "" if self.expires_in_s is None else f"expires in {self.expires_in_s:.1f} s",
            "" if self.uses_left is None else f"{self.uses_left} use(s) left",
            "durable" if self.durable else "",
            f"by {Origin(self.job, self.node, self.pid, self.source)}",
            "" if self.depends_on is None else f"depends on {self.depends_on}",
        )
        return ", ".join(filter(None, parts)) + ">"

    @property
    def hangs_on(self) -> str | None:
        """The old name of `depends_on`; goes with the next minor release."""
        warnings.warn("LeaseInfo.hangs_on is now called depends_on", DeprecationWarning, stacklevel=2)
        return self.depends_on


def _cannot_release(row: LeaseInfo, timeout: Span | None) -> int:
    """What `release_row` is before `asks` says how a process asks a registry."""
    raise NotImplementedError


release_row: Callable[[LeaseInfo, Span | None], int] = _cannot_release


@dataclass(frozen=True, repr=False)
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
        released: leases ended by release or take; like `used_up` without those that live again, as the use was given back.
        expired: leases ended by their ttl.
        used_up: leases ended by their uses.
        owner_gone: leases ended because their owners died.
        lost: leases lost with the process that they depended on (`LeaseInfo.depends_on`), one for each replica that lost it.
        tombstones: ended leases that it still remembers.
        shards: how many actors the registry has.
        replicas: how many of them hold each lease. The counts above are of leases, not of their replicas.
        recovering: shards that can't be reached now, or don't yet hold again what they held before a restart.
        jobs: live leases by the job that made them (its id).
        unanchored: leases, of one replica at least, of which the objects' owners don't yet know who holds them: those that depend on
            a process (`LeaseInfo.depends_on`), and those that were resolved a moment ago.
        anchoring_behind_s: seconds for which the oldest of those has waited, of those that wait for the first time. If that may come
            to more than a second, `loads` waits.
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
    unanchored: int = 0
    anchoring_behind_s: float = 0.0
    jobs: Mapping[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        held = f"{self.live_leases} live lease(s) with {self.live_references} reference(s)"
        names = (
            "pinned",
            "resolved",
            "released",
            "expired",
            "used_up",
            "owner_gone",
            "lost",
            "unanchored",
            "recovering",
        )
        counts = "".join(f", {name} {getattr(self, name)}" for name in names if getattr(self, name))
        size = "" if self.shards == 1 else f", {self.shards} shards, {self.replicas} replica(s)"
        return f"<RegistryStats {self.registry!r}: {held}{counts}{size}, up for {self.uptime_s:.1f} s>"

    @property
    def unsettled(self) -> int:
        """The old name of `unanchored`; goes with the next minor release."""
        warnings.warn("RegistryStats.unsettled is now called unanchored", DeprecationWarning, stacklevel=2)
        return self.unanchored


ORDERS = frozenset({"age", "expires", "references", "bytes"})
MOST_ROWS = 10_000  # of a page


class Query(NamedTuple):
    """Which live leases to list, and in which order. None is any.

    Attributes:
        label: of this label.
        job: made by this job.
        min_age_s: at least so old.
        min_bytes: holding at least so many bytes; needs sizes.
        marks: those of these marks; see `listing.mark_of`.
        sort: `age` (oldest first), `expires` (soonest first; those without a ttl last), `references` or `bytes` (most first).
        after: the last row of the page before, as (what it was sorted by, its number); None for the first page.
        limit: rows of a page.
    """

    label: Name | None = None
    job: Name | None = None
    min_age_s: Seconds | None = None
    min_bytes: Order | None = None
    sort: Annotated[str, OneOf(ORDERS)] = "age"
    after: tuple[Order, int] | None = None
    limit: Annotated[int, Range(1, MOST_ROWS)] = 1000
    marks: frozenset[Mark] | None = None

    @property
    def chooses_all(self) -> bool:
        """Whether it leaves out no lease."""
        return self.label is None and self.job is None and not self.min_age_s and self.marks is None
