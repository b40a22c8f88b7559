"""What the core needs of whatever sends requests, asks shards and finds registries. The core has one of each; wings have others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from ..config import Deadline
from ..errors import SafeRefsError
from .records import Identity, Origin
from .requests import Plan, Question, Unspent, Wanted

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

A = TypeVar("A")


class Sender(Protocol):
    """How the requests of a process get to the verbs: one by one, or together with those of other threads.

    A pin that raises leaves the release of its lease to the caller.
    """

    def pin(self, registry: str, plan: Plan, deadline: Deadline) -> Identity:
        """Begin a lease, and wait until the registry holds it."""

    def pin_many(self, registry: str, plans: Sequence[Plan], deadline: Deadline) -> list[Identity]:
        """The same for several: all are held, or it raises."""

    def resolve(self, row: Wanted, deadline: Deadline) -> list[Ref]:
        """What a lease holds."""

    def resolve_many(self, rows: Sequence[Wanted], deadline: Deadline, found: dict[int, list[Ref]]) -> None:
        """Put into `found` what several leases hold, of one registry or of several, by their places. If it raises, it has some."""

    def release(self, registry: str, leases: Sequence[bytes], deadline: Deadline) -> int:
        """End leases by their ids; how many that ended."""

    def post(
        self, registry: str, plan: Plan, deadline: Deadline, then: Callable[[Identity | None, Exception | None], None]
    ) -> None:
        """Begin a lease without waiting; `then` is called with the identity that holds it, or with the error."""

    def close(self) -> None:
        """The connection is gone: keep nothing, end threads; must not wait."""


class Layout(Protocol):
    """What the core knows of a registry's topology."""

    @property
    def version(self) -> int:
        """Changes with the topology; 0 where there is only one shard, for good."""

    @property
    def shards(self) -> int:
        """How many shards there are."""

    @property
    def replicas(self) -> int:
        """How many of them hold each lease."""


class Asks(Protocol):
    """What asks a registry once, for its layout: `asking.Verbs` says what each method does."""

    layout: Layout

    def holders(self, lease: bytes) -> Sequence[int]:
        """The shards that a lease is pinned at."""

    def by_shard(self, leases: Iterable[bytes]) -> dict[int, list[bytes]]:
        """Leases by the shards that may hold them."""

    def pin_once(self, plans: Sequence[Plan], deadline: Deadline) -> list[Identity | SafeRefsError | None]:
        """Begin leases."""

    def resolve_once(self, rows: Sequence[Wanted], deadline: Deadline) -> list[list[Ref] | None]:
        """What leases hold."""

    def ask_once(self, question: Question[A], deadline: Deadline) -> A | SafeRefsError | None:
        """Ask about one lease."""

    def give_back_once(self, uses: Sequence[Unspent], lives: set[bytes], deadline: Deadline) -> bool | None:
        """Give uses back."""

    def release_once(
        self, rows: Sequence[tuple[Sequence[bytes], Origin]], ended: set[bytes], deadline: Deadline
    ) -> bool | None:
        """End leases."""


class Directory(Protocol):
    """How a process finds the layout of registries.

    Raises everywhere: `RegistryUnavailableError` if Ray's control service, which has the layouts, does not answer by the deadline.
    """

    def find(self, registry: str, *, start: bool, deadline: Deadline | None = None) -> Layout | None:
        """The layout of a registry; None if it doesn't run, and isn't to be started.

        Raises:
            ValueError: this process asks for another layout than it has.
        """

    def found(self, registry: str, deadline: Deadline | None = None) -> Layout | None:
        """The layout that a registry has, whatever this process asks for; None if it doesn't run."""

    def forget(self, registry: str, deadline: Deadline | None = None) -> None:
        """A registry has been shut down: it has no layout any more."""


class OneShard(NamedTuple):
    """The layout of a registry that has one shard, and never another."""

    version: int = 0
    shards: int = 1
    replicas: int = 1


class Always:
    """The directory of the core by itself: each registry has one shard."""

    def find(self, registry: str, *, start: bool, deadline: Deadline | None = None) -> Layout | None:
        """See `Directory`, as for all below."""
        return OneShard()

    def found(self, registry: str, deadline: Deadline | None = None) -> Layout | None:
        """Always the same."""
        return OneShard()

    def forget(self, registry: str, deadline: Deadline | None = None) -> None:
        """Whether it runs isn't known here."""
