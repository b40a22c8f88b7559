"""A shard's side of durable leases: which of them its adopter is making copies for, and for whom.

A lease becomes durable when its adopter (see `adoption`) has given the shard copies of all that it holds; until then it holds
the originals. Whoever asks for that asks again and again until it is done, so that a lease of which the maker has died on the way is
given up; leases that came from another shard are adopted in the background, as their copies belong to that shard's adopter.

What always holds: pure; touched under the shard's lock only; what was given up or has failed is not taken when it comes all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .copying import Unfit

_PATIENCE_S = 15.0  # who doesn't ask again for so long has died
_SILENCE_S = 10.0  # an adopter that doesn't ask what is wanted for so long has died
_PAUSE_S = 10.0  # before a background adoption that failed is tried again


class _Ward:
    """A lease that is being made durable.

    Attributes:
        env: what the tasks need that copy its objects; see `_ray.surroundings`.
        ttl: seconds that it is to live from when it is durable; None for what it has.
        asked_at: when somebody last asked for it; None in the background.
        begun_at: when its adopter was asked to copy; None not yet.
        seen_at: when the adopter last said that it is at it.
        bell: what shows that the adopter is done with it.
        unfit: why it couldn't be done, till somebody asks.
    """

    __slots__ = ("asked_at", "begun_at", "bell", "env", "seen_at", "ttl", "unfit")

    def __init__(self, env: str, ttl: float | None, asked_at: float | None, due_at: float) -> None:
        self.env = env
        self.ttl = ttl
        self.asked_at = asked_at
        self.begun_at: float | None = None
        self.seen_at = due_at
        self.bell: Any = None
        self.unfit: Unfit | None = None


class Wards:
    """The leases of one shard that are being made durable.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._wards: dict[bytes, _Ward] = {}

    def __len__(self) -> int:
        return len(self._wards)

    def ask(self, lease: bytes, env: str, ttl: float | None = None) -> Unfit | bool:
        """Somebody wants a lease to be durable: whether the adopter is to be told now, or why it can't be."""
        now = self._clock()
        ward = self._wards.get(lease)
        if ward is None:
            ward = self._wards[lease] = _Ward(env, ttl, now, now)
        ward.asked_at = now
        if ward.unfit is not None:
            del self._wards[lease]
            return ward.unfit
        return self._is_to_begin(ward)

    def begun(self, lease: bytes, bell: Any) -> None:
        """The adopter has been told of a lease, and shows by `bell` that it is done with it."""
        if lease in self._wards:
            self._wards[lease].bell = bell

    def again(self, lease: bytes) -> None:
        """The adopter could not be told: it is to be told by the next who asks."""
        if lease in self._wards:
            self._wards[lease].begun_at = None

    def bell(self, lease: bytes) -> Any:
        """What to wait for before asking again; None if there is nothing yet."""
        ward = self._wards.get(lease)
        return None if ward is None else ward.bell

    def want(self, lease: bytes, env: str) -> None:
        """A durable lease holds copies of another shard's adopter: have them copied in the background."""
        if lease not in self._wards:
            self._wards[lease] = _Ward(env, None, None, self._clock())

    def due(self) -> list[tuple[bytes, str]]:
        """The leases in the background of which the adopter is to be told now, each with its environment."""
        self._forget_forsaken()
        return [
            (lease, ward.env)
            for lease, ward in self._wards.items()
            if ward.asked_at is None and self._is_to_begin(ward)
        ]

    def still(self, leases: Iterable[bytes]) -> list[bytes]:
        """The adopter is at these: which of them are still wanted."""
        self._forget_forsaken()
        now = self._clock()
        wanted = []
        for lease in leases:
            ward = self._wards.get(lease)
            if ward is None or ward.unfit is not None:
                continue
            ward.seen_at = now
            wanted.append(lease)
        return wanted

    def done(self, lease: bytes) -> tuple[str, float | None] | None:
        """The adopter has made the copies: in which environment, and the lease's new ttl; None if nobody wants them any more."""
        if not self.still([lease]):
            return None
        ward = self._wards.pop(lease)
        return ward.env, ward.ttl

    def fail(self, lease: bytes, unfit: Unfit) -> None:
        """The adopter can't make the copies."""
        ward = self._wards.get(lease)
        if ward is None:
            return
        if ward.asked_at is None:
            ward.begun_at, ward.seen_at = None, self._clock() + _PAUSE_S
        else:
            ward.unfit = unfit

    def forget(self, lease: bytes) -> None:
        """The lease has ended."""
        self._wards.pop(lease, None)

    def _forget_forsaken(self) -> None:
        longest = self._clock() - _PATIENCE_S
        for lease in [lease for lease, ward in self._wards.items() if (ward.asked_at or longest) < longest]:
            del self._wards[lease]

    def _is_to_begin(self, ward: _Ward) -> bool:
        now = self._clock()
        if ward.begun_at is None and now < ward.seen_at:
            return False
        if ward.begun_at is None or now - max(ward.seen_at, ward.begun_at) > _SILENCE_S:
            ward.begun_at = now
            return True
        return False
