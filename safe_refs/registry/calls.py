"""Calls from this process to a registry's actors.

A `Registry` is what this process knows of one registry: the actors' handles, the layout, the identity of the last start.

What always holds: every wait ends by its deadline. This module calls once; `verbs` repeats calls, also on an actor's successor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import msgpack

from .._ray import client as ray_client
from .._ray import cluster, objects, packages, requests, serializing, workers
from ..config import Deadline
from ..errors import RegistryUnavailableError
from . import late
from .here import Here
from .protocols import Asks, Layout
from .records import Identity, Origin
from .shard import Shard, actor_name
from .wire import NOT_TEXT, PACKED, ReleaseCall
from .wire import Silence as Silence  # other modules import it from here, too

A = TypeVar("A")
P = ParamSpec("P")

RETRY_PAUSE_S = 0.1
_SENDS_S = 0.5  # for a shard that has to be looked up, where nobody waits for an answer
LONGEST_WAIT_S = 1e6  # Ray counts milliseconds, and far longer waits overflow
_MARGIN_S = 0.5  # for a Ray Client's call, which runs in another thread, to say itself that it has no answer


class NoRegistryError(Exception):
    """No registry, or no such shard, runs under that name, and the call was not one that starts one."""


class Call(Generic[A]):
    """A call to a shard: `Call(Shard.pin, PinCall(…), refs)`. The method and its arguments are checked by mypy, and so is the answer.

    Args:
        method: of `Shard`, or of a `ShardPart` where it is marked as remote.
        args: its arguments; those that are to travel as bytes are packed here.

    Attributes:
        late: gets its answer, in another thread, if a signal handler's exception ends the wait for it.
    """

    __slots__ = ("args", "late", "method")

    def __init__(self, method: Callable[Concatenate[Any, P], A], *args: P.args, **kwargs: P.kwargs) -> None:
        self.late: late.Late | None = None
        packed = [msgpack.packb(each, unicode_errors=NOT_TEXT) if type(each) in PACKED else each for each in args]
        if getattr(method, "is_remote", False):
            self.method, self.args = "part", (method.__qualname__, *packed)
        else:
            self.method, self.args = method.__name__, tuple(packed)


class Registry:
    """A registry as this process knows it. Attributes are replaced, never changed in place, so that threads read them without a lock.

    Args:
        here: where this process stands.
        name: of the registry.
        verbs: makes the `Verbs` for a layout.
    """

    def __init__(self, here: Here, name: str, verbs: Callable[[Registry, Layout], Asks]) -> None:
        self.here = here
        self.name = name
        self._make_verbs = verbs
        self.identity: Identity | None = None  # of the last start that this process has asked
        self._layout: Layout | None = None
        self._verbs: Asks | None = None  # for that layout
        # By shard: at most as many as the registry has shards. No lock: each change is one step for the interpreter.
        self._handles: dict[int, Any] = {}

    def layout(self, *, start: bool, deadline: Deadline | None = None) -> Layout:
        """Its layout, looked up on first contact.

        Raises:
            NoRegistryError: it doesn't run, and `start` is False.
            RegistryUnavailableError: Ray's control service does not answer by the deadline.
            ValueError: this process asks for another layout than it has.
        """
        known = self._layout
        if known is None:
            known = self.here.directory.find(self.name, start=start, deadline=deadline)
            if known is None:
                raise NoRegistryError
            self.use_layout(known)
        return known

    def use_layout(self, layout: Layout) -> None:
        """Go by this layout, until it turns out to be out of date."""
        self._layout, self._verbs = layout, None

    def verbs(self, *, start: bool, deadline: Deadline | None = None) -> Asks:
        """What to ask it by; errors as for `layout`."""
        found = self._verbs
        if found is None or self._layout is None:
            found = self._verbs = self._make_verbs(self, self.layout(start=start, deadline=deadline))
        return found

    @property
    def knows_layout(self) -> bool:
        """Whether the layout needn't be looked up."""
        return self._layout is not None

    def forget_layout(self) -> None:
        """Look the layout up anew, next time."""
        self._layout = self._verbs = None

    def forget(self) -> None:
        """Nobody runs under that name: look all of it up anew, next time."""
        self.forget_layout()
        self.identity = None

    def identify(self, deadline: Deadline) -> Identity:
        """The identity of its last start; asked for, and the registry started if it must be, on first contact."""
        while (known := self.identity) is None:
            # All shards are started, as one that doesn't run can't be a replica; the first that answers will do.
            shards = range(self.layout(start=True, deadline=deadline).shards)
            replies = self.ask({shard: Call(Shard.hello) for shard in shards}, deadline, start=True)
            found = next((reply for reply in replies.values() if isinstance(reply, bytes)), None)
            if found is not None:
                self.identity = known = Identity.from_bytes(found)
                return known  # another thread may forget it meanwhile
            self.pause(deadline)
        return known

    def ask(
        self,
        calls: Mapping[int, Call[A]],
        deadline: Deadline,
        *,
        start: bool = False,
        patience_s: float = LONGEST_WAIT_S,
    ) -> dict[int, A | Silence]:
        """Call shards, all at once, and wait for their answers; once, without trying again.

        Args:
            calls: the call to each shard.
            deadline: when all waiting ends.
            start: start a shard that isn't there.
            patience_s: wait no longer than that for the others once one has answered.

        Returns:
            By shard the answer, or why there is none.
        """
        import ray

        if self.here.connection.client and not ray_client.is_in_background():
            again = partial(self.ask, calls, deadline, start=start, patience_s=patience_s)
            try:
                return ray_client.in_time(again, deadline.left_s() + _MARGIN_S, partial(late.come, calls))
            except ray_client.NoAnswerError:
                return dict.fromkeys(calls, Silence.LATE)
        replies: dict[int, A | Silence] = {}
        waiting: dict[Any, int] = {}
        try:
            for shard, call in calls.items():
                try:
                    handle = self._handles.get(shard) or self._find(shard, start, deadline)
                    waiting[getattr(handle, call.method).remote(*call.args)] = shard
                except NoRegistryError:
                    replies[shard] = Silence.ABSENT
                except ray.exceptions.RayActorError:
                    self._forget_handle(shard)
                    replies[shard] = Silence.DEAD
                except ray_client.broken() as error:
                    raise ray_client.unavailable(error) from None
                except ValueError as error:  # Ray has forgotten the owner of a reference in it
                    raise ray_client.unless_left(error) from None
            begun = time.monotonic()
            try:
                # All together is quickest, and how it nearly always goes.
                answers = objects.get(list(waiting), min(deadline.left_s(), patience_s, LONGEST_WAIT_S))
                return replies | dict(zip(waiting.values(), answers, strict=True))
            except ray.exceptions.RayTaskError:
                raise  # a mistake in the actor, which may look like any other exception
            except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError, ray.exceptions.ObjectLostError):
                until = deadline.at
            while waiting:
                left = min(max(until - time.monotonic(), 0.0), LONGEST_WAIT_S)
                ready = objects.wait(list(waiting), 1, left)
                if not ready:
                    replies |= dict.fromkeys(waiting.values(), Silence.LATE)
                    break
                shard = waiting.pop(ready[0])
                try:
                    replies[shard] = objects.get(ready[0], max(left, 1.0))
                    until = min(until, max(begun + patience_s, time.monotonic()))
                except ray.exceptions.RayTaskError:
                    raise
                except ray.exceptions.GetTimeoutError:
                    replies[shard] = Silence.LATE
                except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
                    packages.note_death(error)
                    self._forget_handle(shard)
                    replies[shard] = Silence.DEAD
            return replies
        except BaseException as error:
            late.after(error, calls, waiting, replies, deadline)
            raise

    def send(self, calls: Mapping[int, Call[Any]]) -> None:
        """Call shards without waiting; those that don't run, or can't be called or found just now, are left out."""
        import ray

        soon = requests.soon(_SENDS_S)
        for shard, call in calls.items():
            try:
                handle = self._handles.get(shard) or cluster.named_actor(actor_name(self.name, shard), Shard, soon)
                getattr(handle, call.method).remote(*call.args)
            except (ValueError, RegistryUnavailableError, ray.exceptions.RayError):
                continue  # Ray is gone from this process, or the shard is, and with it every call that was on its way there

    @serializing.outside
    def release_later(self, leases: Sequence[bytes], maker: Origin | None = None, reason: str = "") -> None:
        """Ask for the end of leases without waiting for it, for clearing up after a failure. Never raises.

        `maker` ends them, else the code that calls. `reason`: why the pins of leases have failed that were passed on before.
        """
        import ray

        try:
            if self.here.connection.client and not ray_client.is_in_background():
                # Even to drop its answer may wait.
                ray_client.in_background(partial(self.release_later, leases, maker, reason))
                return
            if workers.connection() != self.here.connection:
                return  # that cluster is left, and with it all that this process asked there
            rows = self.verbs(start=False, deadline=requests.soon(_SENDS_S)).by_shard(leases)
            version, maker = self.layout(start=False).version, maker or self.here.origin()
        except (NoRegistryError, RegistryUnavailableError, ValueError, ray.exceptions.RayError):
            return
        calls = {shard: ReleaseCall(version, [(ids, maker)], reason) for shard, ids in rows.items()}
        self.send({shard: Call(Shard.release, call) for shard, call in calls.items()})

    def no_answer(self, deadline: Deadline) -> RegistryUnavailableError:
        """The error for an answer that did not come in time."""
        return RegistryUnavailableError(
            f"registry {self.name!r} did not answer within {deadline.timeout_s:g} s: it is overloaded, stopped, or its node can't be "
            "reached; try again, or allow a longer timeout"
        )

    def pause(self, deadline: Deadline, pause_s: float = RETRY_PAUSE_S) -> None:
        """Wait a little before asking again.

        Raises:
            RegistryUnavailableError: the time is over.
        """
        if time.monotonic() + pause_s >= deadline.at:
            raise RegistryUnavailableError(
                f"registry {self.name!r} could not be reached within {deadline.timeout_s:g} s: shards of it are down or recovering; "
                "try again, or allow a longer timeout"
            )
        time.sleep(pause_s)

    def take_handle(self, shard: int) -> Any:
        """A shard's handle, if it is known, which is forgotten: the registry has been shut down."""
        return self._handles.pop(shard, None)

    def _forget_handle(self, shard: int) -> None:
        self._handles.pop(shard, None)

    def _find(self, shard: int, start: bool, deadline: Deadline) -> Any:
        """A shard's actor: the one that runs, or with `start` a new one. Racing processes get the same."""
        name = actor_name(self.name, shard)
        while True:
            try:
                handle = cluster.named_actor(name, Shard, deadline)
                break
            except ValueError:
                if not start:
                    raise NoRegistryError from None
            # It may have been shut down since this process asked it. What starts now is a new one, which others have to find.
            found = self.here.directory.find(self.name, start=True, deadline=deadline)
            if found is not None and shard >= found.shards and self.knows_layout:
                # Another process has started it with fewer shards.
                self.forget_layout()
                raise NoRegistryError
            actor, args = self.here.start(self.name, shard)
            # A crashed one of several starts anew by itself: the others hold what it held. A single one would be empty.
            options = {"max_restarts": -1 if found is not None and found.shards > 1 else 0}
            try:
                started = cluster.start_actor(name, actor, args, place=shard, options=options, deadline=deadline)
                handle = cluster.methods_known(started, Shard, deadline)
                break
            except ValueError:
                # Another process won the race for the name, and its actor is not listed yet, or no longer.
                self.pause(deadline)
        return self._handles.setdefault(shard, handle)
