"""Every exception that safe_refs raises on purpose.

One root, `SafeRefsError`; below it two families. `EnvelopeError` and `UnsupportedReferenceError` say that the *data* is wrong,
and are also what `pickle` would raise. `LeaseError` says that the data is right but the lease has ended or was never here, one
class for each way to end; `RegistryUnavailableError`, `RegistryFullError` and `WrongClusterError` say that the world is wrong.

What always holds: each error has its facts as attributes, a message with the cause and what to do about it, and survives
`pickle`, `cloudpickle` and the border of a Ray task. No error carries a payload or the text of a handle, only a lease's short id
(the first eight of its 32 hexadecimal digits), which resolves nothing. Times are seconds since the epoch by the registry's clock.

More than 350 lines: one class for each way to fail, and most of each is its documentation.
"""

from __future__ import annotations

import copy
import pickle
from datetime import datetime, timezone
from typing import NamedTuple

from .checks import shown


def _when(at: float | None) -> str:
    """`at 2026-01-31T12:00:00Z`, or nothing for an unknown time."""
    if at is None:
        return ""
    return " at " + datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def of_lease(error: Exception, lease: str) -> Exception:
    """The error of a pin that nobody waited for, with the lease's short id in its text and as `lease`; of the same class.

    A copy: if one call carried several pins, they failed with one and the same error.
    """
    if not isinstance(error, SafeRefsError) or len(error.args) != 1 or vars(error).get("lease"):
        return error
    found = copy.copy(error)
    found.args = (f"lease {lease} could not be held: {error}",)
    vars(found)["lease"] = lease
    return found


class _Brief(type):
    """The errors' own class: `dir` and `help` of an error show what it brings, and not what every exception has.

    The name stays: payloads with a user's subclass of an error, pickled by value, name it.
    """

    def __dir__(cls) -> list[str]:
        return [name for name in super().__dir__() if not name.startswith("__") and not hasattr(OSError, name)]


class SafeRefsError(Exception, metaclass=_Brief):
    """The root: catch this for whatever safe_refs raises on purpose.

    You will not get it for an object that simply can't be pickled (`pickle.PicklingError`, `TypeError`, as `pickle` has it), nor
    for a failed task whose reference you resolved (that is the task's own error, from `ray.get`).
    """


class EnvelopeError(SafeRefsError, pickle.UnpicklingError):
    """A payload, or the text of a handle, is cut, altered, or of a format that this release does not know.

    Raised before anything in the payload was unpickled. You will not get it for a foreign pickle: those are `pickle`'s to judge.
    """


class DepthError(RecursionError, pickle.PicklingError):
    """The object is nested too deeply to be pickled.

    Plain `pickle` raises `RecursionError` then, and `cloudpickle` `PicklingError`: this is both, for code that was written for
    either. As with all that simply can't be pickled, it is no `SafeRefsError`.
    """

    def __init__(
        self, message: str = "the object can't be pickled without too deep recursion: see sys.setrecursionlimit"
    ) -> None:
        super().__init__(message)


class Refused(NamedTuple):
    """What an `UnsupportedReferenceError` knows until `locate` says where in the object the reference stands."""

    reference: object
    what: str
    remedy: str


class UnsupportedReferenceError(SafeRefsError, pickle.PicklingError):
    """The object holds a Ray reference of a kind that safe_refs can't carry. Nothing was pinned.

    Attributes:
        kind: the reference's type, such as `ray.actor.ActorHandle`.
        place: where it stands, as a Python expression that starts with `payload` for the object that was to be pickled:
            `payload['batch'][3].ref`. From `dumps_many` it starts with `payloads[2]`, the third object, and from `pin` with
            `ref` or `refs[3]`. None if it wasn't found: an object's own `__reduce__` or `__getstate__` brought it in.
    """

    # Not in the error's dict, and so never pickled with it: the reference couldn't be.
    __slots__ = ("refused",)

    refused: Refused | None

    def __init__(self, message: str, *, kind: str = "", place: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.place = place
        self.refused = None

    @classmethod
    def of(cls, reference: object, what: str, remedy: str, *, kind: str) -> UnsupportedReferenceError:
        """The error for a reference, of which it isn't known yet where it stands.

        Args:
            reference: the one that is refused. The error holds it until `locate`.
            what: what it is, and why it is refused.
            remedy: what to do.
            kind: its type.
        """
        error = cls(f"the object holds {what}: {remedy}", kind=kind)
        error.refused = Refused(reference, what, remedy)
        return error

    def locate(self, name: str, place: str | None) -> None:
        """Say where the reference stands, from now on without holding it.

        Args:
            name: what the place starts with.
            place: None if it wasn't found.
        """
        if self.refused is None:
            return
        _, what, remedy = self.refused
        if place is None:
            text = f"{name} holds {what} (somewhere in it, behind a __reduce__ or __getstate__, say): {remedy}"
        else:
            text = f"{place} is {what}: {remedy}"
        self.args = (text,)
        self.place = place
        self.refused = None


class LeaseError(SafeRefsError, LookupError):
    """The lease behind a payload or handle can't be had. Its subclasses say why.

    Attributes:
        lease: short id of the lease.
        registry: name of the registry that answered, or should have.
        ended_at: when the lease ended, in seconds since the epoch by the registry's clock; None where nobody knows.
    """

    def __init__(self, message: str, *, lease: str = "", registry: str = "", ended_at: float | None = None) -> None:
        super().__init__(message)
        self.lease = lease
        self.registry = registry
        self.ended_at = ended_at


class LeaseReleasedError(LeaseError):
    """Somebody released the lease, or took it (`take=True`).

    A registry that was shut down is gone, which is `LeaseLostError`; this one is for calls that reach it while it closes, too.

    Attributes:
        by: who did, as `pid 4711 on node 1a2b3c4d, job 01000000`; empty where it isn't known.
    """

    def __init__(
        self, message: str, *, lease: str = "", registry: str = "", ended_at: float | None = None, by: str = ""
    ) -> None:
        super().__init__(message, lease=lease, registry=registry, ended_at=ended_at)
        self.by = by

    @classmethod
    def of(cls, lease: str, registry: str, ended_at: float, by: str) -> LeaseReleasedError:
        """The error for a lease that `by` released."""
        who = f" by {shown(by)}" if by else ""
        return cls(
            f"lease {lease} was released{_when(ended_at)}{who}: a released lease doesn't come back; "
            "ask its maker for a new one, or release it later",
            lease=lease,
            registry=registry,
            ended_at=ended_at,
            by=by,
        )


class LeaseExpiredError(LeaseError):
    """The lease's `ttl` ran out.

    Attributes:
        ttl_s: the time to live that it had, in seconds, as of its last renewal.
    """

    def __init__(
        self,
        message: str,
        *,
        lease: str = "",
        registry: str = "",
        ended_at: float | None = None,
        ttl_s: float | None = None,
    ) -> None:
        super().__init__(message, lease=lease, registry=registry, ended_at=ended_at)
        self.ttl_s = ttl_s

    @classmethod
    def of(cls, lease: str, registry: str, ended_at: float, ttl_s: float | None) -> LeaseExpiredError:
        """The error for a lease whose `ttl_s` ran out at `ended_at`."""
        return cls(
            f"lease {lease} expired{_when(ended_at)}, its ttl of {ttl_s} s having run out: "
            "give it a longer ttl, or renew it in time",
            lease=lease,
            registry=registry,
            ended_at=ended_at,
            ttl_s=ttl_s,
        )


class LeaseUsedUpError(LeaseError):
    """The lease has been resolved as often as its `uses` allowed.

    Attributes:
        uses: how many uses it had.
    """

    def __init__(
        self,
        message: str,
        *,
        lease: str = "",
        registry: str = "",
        ended_at: float | None = None,
        uses: int | None = None,
    ) -> None:
        super().__init__(message, lease=lease, registry=registry, ended_at=ended_at)
        self.uses = uses

    @classmethod
    def of(cls, lease: str, registry: str, ended_at: float, uses: int | None) -> LeaseUsedUpError:
        """The error for a lease whose last use was at `ended_at`."""
        return cls(
            f"lease {lease} was used up{_when(ended_at)}: it allowed {uses} use(s), and each load is one; "
            "make it with more uses, or without a limit",
            lease=lease,
            registry=registry,
            ended_at=ended_at,
            uses=uses,
        )


class LeaseLostError(LeaseError):
    """What the lease held is gone: with the registry (shut down, killed or crashed), or with a process that the lease depended on.

    A lease depends on the process that made it if that process had only borrowed the reference and had other threads at work. If such
    a process is killed, the lease is lost (see docs/lifetimes.md).

    Attributes:
        generation: which start of the registry the lease belonged to, counted from 1.
        current_generation: which one answers now; None where no registry runs at all.
    """

    def __init__(
        self,
        message: str,
        *,
        lease: str = "",
        registry: str = "",
        ended_at: float | None = None,
        generation: int | None = None,
        current_generation: int | None = None,
    ) -> None:
        super().__init__(message, lease=lease, registry=registry, ended_at=ended_at)
        self.generation = generation
        self.current_generation = current_generation

    @classmethod
    def of(cls, lease: str, registry: str, generation: int, current: int | None) -> LeaseLostError:
        """The error for a lease of an earlier `generation` of the registry, of which `current` runs now."""
        now = "no registry runs now" if current is None else f"generation {current} runs now"
        return cls(
            f"lease {lease} was lost with generation {generation} of registry {registry!r}, which has ended "
            f"(shut down, killed or crashed; {now}): make the payload anew",
            lease=lease,
            registry=registry,
            generation=generation,
            current_generation=current,
        )

    @classmethod
    def because(cls, lease: str, registry: str, generation: int, at: float, reason: str) -> LeaseLostError:
        """The error for a lease that was lost at a time (seconds since the epoch) for a `reason`, its registry living on.

        The reason says what to do, too.
        """
        return cls(
            f"lease {lease} of registry {registry!r} was lost{_when(at)}: {reason}",
            lease=lease,
            registry=registry,
            ended_at=at,
            generation=generation,
            current_generation=generation,
        )


class LeaseRejectedError(LeaseError):
    """The lease never began: its maker passed it on without waiting (`wait=False`), and the pin failed after that.

    The maker gets the error of the pin itself, which is logged there and raised by its next `flush`.

    Attributes:
        reason: the text of that error; cut where it is long.
    """

    def __init__(
        self, message: str, *, lease: str = "", registry: str = "", ended_at: float | None = None, reason: str = ""
    ) -> None:
        super().__init__(message, lease=lease, registry=registry, ended_at=ended_at)
        self.reason = reason

    @classmethod
    def of(cls, lease: str, registry: str, ended_at: float, reason: str) -> LeaseRejectedError:
        """The error for a lease whose pin failed for a `reason` after its maker had passed it on."""
        return cls(
            f"lease {lease} was rejected by registry {registry!r}{_when(ended_at)}, after its maker had passed it on without "
            f"waiting: {shown(reason)}; ask its maker for a new one, made with wait=True",
            lease=lease,
            registry=registry,
            ended_at=ended_at,
            reason=reason,
        )


class LeaseNotFoundError(LeaseError):
    """The registry never held the lease, or the lease ended so long ago that its tombstone is gone."""

    @classmethod
    def of(cls, lease: str, registry: str) -> LeaseNotFoundError:
        """The error for a lease that the registry does not know."""
        return cls(
            f"registry {registry!r} does not know lease {lease}: it was never held here, or ended so long ago that the "
            "registry has forgotten how; check that the payload is the one you mean",
            lease=lease,
            registry=registry,
        )


class OwnerGoneError(LeaseError):
    """The process that owned the lease's objects is dead, and Ray deleted them with it.

    In Ray an object dies with its owner (the process that called `ray.put` or submitted the task), whoever holds references. With
    `durable=True` the registry holds copies of its own. They have an owner, too: one of the registry's processes.

    Attributes:
        durable: the lease held the registry's copies, and the registry's process that owned those is dead.
    """

    def __init__(
        self,
        message: str,
        *,
        lease: str = "",
        registry: str = "",
        ended_at: float | None = None,
        durable: bool = False,
    ) -> None:
        super().__init__(message, lease=lease, registry=registry, ended_at=ended_at)
        self.durable = durable

    @classmethod
    def of(cls, lease: str, registry: str, ended_at: float | None = None, *, durable: bool = False) -> OwnerGoneError:
        """The error for a lease whose objects, or copies if it was durable, died with their owners."""
        if durable:
            text = (
                f"the copies of durable lease {lease} died with the registry's process that owned them{_when(ended_at)} (the actor "
                "SafeRefsCopyOwner was killed, or its node is gone), and no other shard has copies: make the payload anew; with "
                "init(replicas=2), copies are on two nodes"
            )
        else:
            text = (
                f"the objects of lease {lease} died with the process that owned them{_when(ended_at)}, as in Ray an object ends with "
                "its owner: make the payload with durable=True, let a longer-lived process make the object, or keep the owner alive "
                "until the payload is loaded; an actor outlives its creator if it is made with lifetime='detached'"
            )
        return cls(text, lease=lease, registry=registry, ended_at=ended_at, durable=durable)

    @classmethod
    def before_copied(cls, lease: str, registry: str, ended_at: float) -> OwnerGoneError:
        """The error for a lease that was to become durable, and whose objects died before the registry had copied them."""
        return cls(
            f"the objects of lease {lease} died with the process that owned them{_when(ended_at)}, before the registry had copied "
            "them: make them anew, and keep their owner alive until the call that makes the lease durable has returned",
            lease=lease,
            registry=registry,
            ended_at=ended_at,
        )


class WrongClusterError(SafeRefsError):
    """The payload was made in another Ray cluster than the one this process is connected to.

    Attributes:
        lease: short id of the lease.
        cluster: first eight hexadecimal digits of the payload's cluster id.
        connected: the same of the cluster that this process is connected to.
    """

    def __init__(self, message: str, *, lease: str = "", cluster: str = "", connected: str = "") -> None:
        super().__init__(message)
        self.lease = lease
        self.cluster = cluster
        self.connected = connected

    @classmethod
    def of(cls, lease: str, cluster: bytes, connected: bytes) -> WrongClusterError:
        """The error for a lease of `cluster` met in a process connected to `connected` (both whole ids)."""
        theirs, ours = cluster.hex()[:8], connected.hex()[:8]
        return cls(
            f"lease {lease} was made in Ray cluster {theirs}, and this process is connected to {ours}: references live "
            "only in the cluster that made them; connect to that one, or make the payload anew",
            lease=lease,
            cluster=theirs,
            connected=ours,
        )


class RegistryUnavailableError(SafeRefsError, ConnectionError):
    """The registry can't be reached: no Ray connection, or no answer within the timeout; or it can't start on any node.

    Whatever the call would have held is not held: a `dumps` that raises this leaves nothing behind.

    Attributes:
        lease: from `flush`, short id of the lease that could not be held; else empty.
    """

    lease: str = ""


class RegistryFullError(SafeRefsError):
    """A limit set by `init` would be passed. Nothing was pinned.

    Attributes:
        limit: name of the limit, as in `init`.
        allowed: its value.
        used: how much of it live leases use now.
        asked: how much more the call asked for.
        largest: the labels (or source lines) that hold most, with how much each holds, largest first.
        lease: from `flush`, short id of the lease that could not be held; else empty.
    """

    lease: str = ""

    def __init__(
        self,
        message: str,
        *,
        limit: str = "",
        allowed: int = 0,
        used: int = 0,
        asked: int = 0,
        largest: tuple[tuple[str, int], ...] = (),
    ) -> None:
        super().__init__(message)
        self.limit = limit
        self.allowed = allowed
        self.used = used
        self.asked = asked
        self.largest = largest

    @classmethod
    def of(
        cls, limit: str, allowed: int, used: int, asked: int, largest: tuple[tuple[str, int], ...]
    ) -> RegistryFullError:
        """The error for a pin of `asked` more where `used` of `allowed` are taken."""
        most = ", ".join(f"{shown(name)}: {count}" for name, count in largest)
        return cls(
            f"the registry's {limit} is {allowed}, {used} are in use and {asked} more were asked for "
            f"(most is used by: {most or 'none'}): release leases, give them a ttl, or raise the limit with init()",
            limit=limit,
            allowed=allowed,
            used=used,
            asked=asked,
            largest=largest,
        )
