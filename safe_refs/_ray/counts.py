"""Ray's reference counts: what this process still holds, and how to make it report its borrowers to an owner.

The package `anchoring` says what that is for. It needs one thing that Ray does not offer: a process that borrows an object, and has
passed it on, is to report to the object's owner *now* to whom. Ray lets a borrower report only when it drops its last reference
(its count becomes zero). So `touch_zero` takes the count to zero and up again:

    this process (count 2)                      owner of the object
    count 2 → 1 → 0  ── "I hold it no more; these processes do" ──►  notes them, forgets this process
    count 0 → 1 → 2  registers the reference again; the owner does not know this process from now on

More than 350 lines: the touches, and what restores counts when one of their steps fails, are read together.
"""

from __future__ import annotations

import functools
import gc
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from . import trial
from .actors import has_owner, is_actor_handle, only_objects, stands_for_actor
from .native import connected, core_worker, supported
from .workers import own_address, owner_of

if TYPE_CHECKING:
    import ray

logger = logging.getLogger("safe_refs")

_MOST_HANDLES = 1000  # of one actor, that a process may have
_LONGEST_WINDOW_S = 1.0  # a window takes milliseconds
_LOOKS_S = 0.0002

_TRIES = 100
_AGAIN_S = 0.01

# What of the private calls has failed, here or in their trial; empty if they work; None if nobody has tried them yet. No lock: it is
# replaced as a whole, and two threads that try them at once find the same.
_fault: str | None = None
# References that hold a count in place of a call that failed. Bound: what one touch took, as after that there is no other.
_held: list[Any] = []


class Touch(Enum):
    """What became of an attempt to report to an object's owner who holds the object.

    REPORTED: the owner knew this process, and got its report. UNKNOWN: the owner doesn't know this process as a borrower, and so got
    no report. BUSY: a call in flight has the reference as an argument, so that the count could not be taken to zero.
    """

    REPORTED = 1
    UNKNOWN = 2
    BUSY = 3


def can_anchor() -> bool:
    """Whether this Ray has the private calls that `touch_zero` needs, and they do what is needed. See `trial`; once in a process.

    Without them, a lease that a borrower makes depends on that borrower's life, and the registry says so. One warning says why.
    """
    global _fault
    for _ in range(_TRIES):
        if _fault is not None or (core := connected()) is None:
            break
        try:
            found = trial.fault(core, own_address(), _reports)
        except trial.UndecidedError:
            time.sleep(_AGAIN_S)
            continue
        if connected() is not core:
            break  # the connection has ended meanwhile
        if found:
            _turn_off(found)
        else:
            _fault = ""
    return _fault == ""


def _reports(ref: Any) -> bool:
    """Whether a touch of the trial's object is reported, as nobody else has it."""
    [touch] = touch_zero([ref])
    if touch is Touch.BUSY and not _fault:
        raise trial.UndecidedError  # the garbage collector is at work
    return touch is Touch.REPORTED


def _turn_off(fault: str) -> None:
    """Anchor nothing in this process any more."""
    global _fault
    if _fault:
        return  # whoever found it before has said so
    _fault = fault
    logger.warning(
        "anchoring is off in this process, as a private call of Ray does not do what it needs (%s): leases of references that are "
        "borrowed here depend on this process (`LeaseInfo.depends_on`). %s",
        fault,
        supported(),
    )


def touchable(references: Iterable[Any]) -> list[Any]:
    """Those that have an owner, who has to know who holds them: objects, and actors that aren't detached or weakly held."""
    return [each for each in references if not is_actor_handle(each) or owner_of(each)]


def touch_zero(refs: Sequence[Any]) -> list[Touch]:
    """Make Ray report to the owners of `refs` to whom this process passed them, and keep the references all the same.

    Takes about 120 microseconds for one reference, 15 for each further one, and 0.5 for each that this process counts. Whoever uses
    one of `refs` in this process meanwhile gets an error. So the caller must be alone (`workers.is_alone`), or keep all others off.
    Afterwards the owner doesn't know this process, until somebody that the owner knows passes it the reference again.

    Neither a signal handler's exception nor a garbage collection can come between the steps: they run in one call of C.

    Ray shows no counts for actors. Of an actor this process must have exactly one handle, as `actors.interned` gives. That its count
    has been zero shows in that Ray doesn't know the actor's owner any more. Where that doesn't show, the answer is UNKNOWN, which for
    an actor may also mean that a call in flight has the handle as an argument.

    Private: `get_all_reference_counts` and the calls that `ObjectRef` itself makes when it is created and deleted, seen since Ray
    2.52. Without it, see `can_anchor`.

    What always holds: if a step fails, all counts are taken up again, and nothing is touched in this process any more (one warning
    says so); everything is BUSY then.

    Args:
        refs: each object, or handle of an actor, once. Since the last touch, somebody else must have come to hold each of them, and
            must have confirmed that to this process by answering the call that brought them. Who holds them is what this process has
            to report; and it is by what Ray has left of that after the zero that REPORTED is told from UNKNOWN.
    """
    if any(map(is_actor_handle, refs)):
        found = iter(touch_zero(only_objects(refs)))
        return [_unless_it_fails(_touch_actor, [ref])[0] if is_actor_handle(ref) else next(found) for ref in refs]
    return _unless_it_fails(_touch_objects, refs)


def _unless_it_fails(touch: Callable[[Sequence[Any]], list[Touch]], refs: Sequence[Any]) -> list[Touch]:
    global _fault
    core = connected()
    with _no_collection() as quiet:
        if not quiet or _fault:
            return [Touch.BUSY] * len(refs)
        try:
            return touch(refs)
        except _StepError as error:
            if connected() is not core:
                raise  # it is not the call's fault
            _turn_off(f"{error}, in the middle of a touch")
        except Exception:
            # Before the first step. It is a signal handler's, unless the calls are other ones by now.
            if connected() is not core or _fault is None:
                raise
            _fault = None
            if can_anchor():
                raise
    return [Touch.BUSY] * len(refs)


class _StepError(Exception):
    """A call of a touch has failed."""


class _Step(NamedTuple):
    """One call of a touch: of which reference (by its number), by how much the call changes its count, and the call."""

    number: int
    change: int
    call: functools.partial[Any]


def _touch_objects(refs: Sequence[Any]) -> list[Touch]:
    import ray

    core = core_worker()
    nil: Any = ray.ObjectRef.nil()
    down: list[_Step] = []
    up: list[_Step] = []
    touches: dict[bytes, Touch] = {ref.hex().encode(): Touch.BUSY for ref in refs}
    counts = core.get_all_reference_counts()
    for number, (ref, key) in enumerate(zip(refs, touches, strict=True)):
        mine = counts.get(key)
        # "submitted" counts the calls in flight that have it as an argument: they would keep the count above zero.
        if mine is None or mine["submitted"] or not mine["local"]:
            continue
        _, owner, status = core.serialize_object_ref(ref)
        down += [_Step(number, -1, functools.partial(core.remove_object_ref_reference, ref))] * mine["local"]
        up += [_Step(number, 1, functools.partial(core.add_object_ref_reference, ref))] * mine["local"]
        # At zero Ray forgot the owner as well.
        register = functools.partial(core.deserialize_and_register_object_ref, ref.binary(), nil, owner, status)
        up.append(_Step(number, 0, register))
        touches[key] = Touch.REPORTED
    del counts
    if not down:
        return list(touches.values())
    steps = [*down, _Step(-1, 0, functools.partial(core.get_all_reference_counts)), *up]
    call: Any = functools.partial.__call__
    done: list[Any] = []
    try:
        # `map` and `extend` call the steps from C, with no Python bytecode in between, at which Python would run a signal handler.
        done.extend(map(call, [step.call for step in steps]))
    except BaseException as error:
        if len(done) == len(steps):
            raise  # a signal handler's, behind the last step
        _restore(refs, steps[: len(done)], up)
        raise _StepError(f"CoreWorker.{steps[len(done)].call.func.__name__}: {error!r}") from error
    # At zero, Ray forgets an object that it has reported. One that it still remembers it keeps for the borrowers that this process
    # has not reported to anybody.
    remembered = done[len(down)]
    for key, touch in touches.items():
        if touch is Touch.REPORTED and key in remembered:
            touches[key] = Touch.UNKNOWN
    return list(touches.values())


def touch_held(refs: Sequence[Any]) -> list[Touch]:
    """`touch_zero` for a process that has one Python reference to each of `refs`, nearly always: a shard, with many objects.

    `touch_zero` asks Ray for the counts of all objects of the process, twice, which takes a microsecond for each, in one piece. This
    takes 15 microseconds for each of `refs`, however many others there are: it lowers each count by one, and sees whether Ray has
    forgotten the owner by that. Where it has not, the count was higher, or the object is in use, or Ray remembers it for borrowers
    that were not reported. Then the count is as it was, and `touch_zero` finds out.

    Args:
        refs: as for `touch_zero`.
    """
    touches = _unless_it_fails(_touch_each, refs)
    left = [place for place, touch in enumerate(touches) if touch is Touch.BUSY]
    if left:
        for place, touch in zip(left, touch_zero([refs[place] for place in left]), strict=True):
            touches[place] = touch
    return touches


def _touch_each(refs: Sequence[Any]) -> list[Touch]:
    """For each object whether that has reported it; otherwise BUSY, which says nothing here."""
    import ray

    core = core_worker()
    nil: Any = ray.ObjectRef.nil()
    touches = [Touch.BUSY] * len(refs)
    try:
        for place, ref in enumerate(refs):
            if is_actor_handle(ref):
                continue
            _, owner, status = core.serialize_object_ref(ref)
            core.remove_object_ref_reference(ref)
            try:
                core.get_owner_address(ref)
            except ValueError:
                touches[place] = Touch.REPORTED
            finally:
                try:
                    core.add_object_ref_reference(ref)
                except Exception:
                    _held.append(ray.ObjectRef(ref.binary()))  # as in `_restore`
                    raise
                finally:
                    if touches[place] is Touch.REPORTED:
                        core.deserialize_and_register_object_ref(ref.binary(), nil, owner, status)
    except Exception as error:  # only a shard calls this, and there are no signal handlers in it
        raise _StepError(repr(error)) from error
    return touches


def _restore(refs: Sequence[Any], done: Sequence[_Step], up: Sequence[_Step]) -> None:
    """A step has failed: take up again what `done` took down, and have the owners known again, as far as that can be."""
    import ray

    missing: Counter[int] = Counter()
    for step in done:
        missing[step.number] -= step.change
    taken = {step.number for step in done if step.change < 0}
    for step in up:
        if step.number in taken and (step.change == 0 or missing[step.number] > 0):
            missing[step.number] -= step.change
            try:
                step.call()
            except Exception:
                if step.change:
                    with suppress(Exception):
                        _held.append(ray.ObjectRef(refs[step.number].binary()))  # which counts, and is never deleted


def _touch_actor(handles: Sequence[Any]) -> list[Touch]:
    """`touch_zero` for the one handle that this process has of an actor."""
    import ray

    core = core_worker()
    removed, touch = 0, Touch.UNKNOWN
    try:
        state, ref = core.serialize_actor_handle(handles[0]._actor_id)
        try:
            while removed < 2:  # one count is the handle's, the other that of `ref`
                core.remove_object_ref_reference(ref)
                removed += 1
            try:
                core.get_owner_address(ref)
            except ValueError:
                touch = Touch.REPORTED
        finally:
            for _ in range(removed):
                core.add_object_ref_reference(ref)
            if touch is Touch.REPORTED:
                core.deserialize_and_register_actor_handle(state, ray.ObjectRef.nil(), False)
    except Exception as error:  # only a shard touches actors, and there are no signal handlers in it
        raise _StepError(repr(error)) from error
    return [touch]


@contextmanager
def _no_collection() -> Iterator[bool]:
    """Keep the garbage collector off, in Ray's own collecting thread as well. Yields False if a collection is under way already.

    A collection could delete an `ObjectRef` after its count was read. Its count would then be taken up once too often, and the object
    would never be freed.

    `gc.disable` stops automatic collections. An explicit `gc.collect()` of another thread, like Ray's, calls `hold_off` first, and
    waits there until the window is closed. A signal handler may raise at any line here: so all is undone twice.
    """
    me = threading.get_ident()
    seen: list[str] = []
    was_on, is_open = gc.isenabled(), [True]

    def hold_off(phase: str, _: object) -> None:
        if threading.get_ident() == me:
            seen.append(phase)
        elif phase == "start":
            until = time.monotonic() + _LONGEST_WINDOW_S
            while is_open and time.monotonic() < until:
                time.sleep(_LOOKS_S)

    def close() -> None:
        is_open.clear()
        if hold_off in gc.callbacks:
            gc.callbacks.remove(hold_off)
        if was_on:
            gc.enable()

    try:
        try:
            gc.disable()
            gc.callbacks.append(hold_off)
            gc.collect(0)  # if another thread is collecting, this does nothing and calls no callback
            yield "start" in seen
        finally:
            close()
    finally:
        close()


def counted(ids: Iterable[bytes]) -> list[bytes]:
    """Those of these objects that this process still knows anything of, even if only who else holds them.

    Private: `CoreWorker.get_all_reference_counts`, seen since Ray 2.52; its keys are hexadecimal in bytes. `shutdown` uses it to wait
    until the references that it dropped are really gone, and relays do the same. Without it, both would have to wait a fixed time.
    """
    counts = core_worker().get_all_reference_counts()
    return [id_ for id_ in ids if id_.hex().encode() in counts or (stands_for_actor(id_) and has_owner(id_))]


def remembered() -> int:
    """How many objects this process knows anything of, even if only who else holds them. Private: see `counted`."""
    return len(core_worker().get_all_reference_counts())


def still_counted(ids: Iterable[bytes]) -> set[bytes]:
    """Those of these objects to which this process still has references. Actors are left out. Private: see `counted`."""
    counts = core_worker().get_all_reference_counts()
    return {id_ for id_ in ids if counts.get(id_.hex().encode(), {}).get("local")}


def drop_values(ids: Iterable[bytes]) -> None:
    """Free what this process still keeps of its own objects to which nobody has references any more (see `counted`).

    Ray keeps a task's result in the process that owns it: the value up to 100 KB, a mark of a larger one. It frees that when the
    process drops its last reference, but not when a borrower does later, and that was the last there was: seen in Ray 2.60, also
    without safe_refs. Another reference, made and dropped here, has it freed. Without this, a copy owner would keep all small copies.
    """
    references(ids)


def references(ids: Iterable[bytes]) -> list[ray.ObjectRef[Any]]:
    """References to objects to which this process has references already, so that Ray knows their owners here."""
    import ray

    return [ray.ObjectRef(id_) for id_ in ids]


def let_go_of_actor(id_: bytes) -> None:
    """Take this process's count for an actor to zero and leave it there, so that Ray reports to the owner who else holds the actor.

    Only for a process that ends: from then on, its handles of the actor keep nothing alive. Ray shows no counts for actors, so this
    goes on until Ray doesn't know the owner any more.

    Private: see `touch_zero`.

    Args:
        id_: of the object that stands for the actor.
    """
    import ray

    ref: Any = ray.ObjectRef(id_)
    for _ in range(_MOST_HANDLES):
        if not has_owner(id_):
            return
        core_worker().remove_object_ref_reference(ref)
