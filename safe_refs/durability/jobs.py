"""One copy job: what is to be done for the objects of one lease, and in which order. Pure.

For each object the job gives out steps; whoever carries them out says what came of each, and the job gives out the next:

    AWAIT ── exists ──> DUPLICATE ──┬── a copy ───────────────────────────────────────────────────────────> done
                                    ├── objects inside ── each of them the same ── all have copies ─> REBUILD ── finished ──> done
                                    └── an error ─────────────────────────────────────────────> FAIL_ALIKE ── finished ──> done

An object that is in several others, or in several slots, is copied once. An object is rebuilt as soon as the tasks for everything
inside it have begun, as a reference to their results is all that it needs.

What always holds: when `result` is set the job is over, and takes no notice of what is said to it any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import Enum
from typing import Any

from .copying import ErrorInside, Inside
from .wire import NotCopyable, Why

_MOST_CRASHES = 3  # of the workers that copy what one lease holds

_CIRCLE = NotCopyable(Why.UNSUPPORTED, "its objects hold each other in a circle, of which no copy can be made")
# An object that was to contain the lost copy's reference would have to be copied again, too. So the whole job is to begin again.
_CRASHED = NotCopyable(
    Why.FAILED, "the process that copied an object has died, each time: killed, or for want of memory on its node"
)


class Step(Enum):
    """What is to be done for an object.

    AWAIT: wait until it exists; needs no task. DUPLICATE, REBUILD, FAIL_ALIKE: run the task of that name (see `copying`).
    """

    AWAIT = 1
    DUPLICATE = 2
    REBUILD = 3
    FAIL_ALIKE = 4


class _Object:
    """An object that is to be copied.

    Attributes:
        ref: it.
        copy: the reference of its copy, from when the last task for it has begun.
        inside: ids of the objects inside it, once they are known.
        lacking: how many of those have no copy yet.
        around: ids of the objects that wait for its copy, as it is inside them.
    """

    __slots__ = ("around", "copy", "inside", "lacking", "ref")

    def __init__(self, ref: Any) -> None:
        self.ref = ref
        self.copy: Any = None
        self.inside: list[bytes] = []
        self.lacking = 0
        self.around: list[bytes] = []


class CopyJob:
    """The copies of what one lease holds.

    Args:
        slots: what the lease holds, slot by slot: the object's id and its reference; None and the handle for an actor, which stays
            what it is.
        ready: whether all of the objects are known to exist.

    Attributes:
        tasks: the tasks that are to be run, each of an object, in the order in which they became due. Whoever runs one takes it out.
        awaited: likewise, the objects that are to be waited for.
        result: the copies, slot by slot, or why there can be none; None while it is under way.
    """

    def __init__(self, slots: Sequence[tuple[bytes | None, Any]], *, ready: bool) -> None:
        self._slots = slots
        # By id: of this lease, and what was found inside those. All go with `clear`.
        self._objects: dict[bytes, _Object] = {}
        self._unfinished = 0  # objects whose copies don't exist yet
        self._under_way = 0  # steps that were given out and of which nothing was said yet
        self._crashes = 0
        self.tasks: deque[tuple[Step, bytes]] = deque()
        self.awaited: deque[bytes] = deque()
        self.result: list[Any] | NotCopyable | None = None
        for id_, ref in slots:
            if id_ is not None:
                self._add(id_, ref, ready=ready)
        self._look_if_over()

    def ref(self, id_: bytes) -> Any:
        """The object of that id."""
        return self._objects[id_].ref

    def copies(self) -> list[Any]:
        """All copies that there are, of objects in the slots and inside others."""
        return [found.copy for found in self._objects.values() if found.copy is not None]

    def copies_inside(self, id_: bytes) -> dict[bytes, Any]:
        """The copies of the objects inside an object, by those objects' ids: what `rebuild` needs."""
        return {inside: self._objects[inside].copy for inside in self._objects[id_].inside}

    def exists(self, id_: bytes) -> None:
        """An object that was waited for exists."""
        if self._is_answered():
            self._task(Step.DUPLICATE, id_)

    def begun(self, step: Step, id_: bytes, copy: Any) -> None:
        """A task has begun, and `copy` is going to be the reference of the copy, unless it was to find out first."""
        if self.result is None and step is not Step.DUPLICATE:
            self._has_copy(id_, copy)

    def duplicated(self, id_: bytes, copy: Any, report: Inside | ErrorInside | NotCopyable) -> None:
        """`duplicate` is over: with a copy, unless it says why not."""
        if not self._is_answered():
            return
        if isinstance(report, NotCopyable):
            self.fail(report)
        elif isinstance(report, ErrorInside):
            self._task(Step.FAIL_ALIKE, id_)
        elif report.refs:
            self._met_inside(id_, report.refs)
        else:
            self._has_copy(id_, copy)
            self._unfinished -= 1
        self._look_if_over()

    def finished(self, id_: bytes) -> None:
        """The last task for an object is over."""
        if self._is_answered():
            self._unfinished -= 1
            self._look_if_over()

    def crashed(self, step: Step, id_: bytes) -> None:
        """The worker that ran a task has died: `duplicate` is run again, a few times."""
        if not self._is_answered():
            return
        self._crashes += 1
        if step is Step.DUPLICATE and self._crashes <= _MOST_CRASHES:
            self._task(step, id_)
        else:
            self.fail(_CRASHED)

    def fail(self, why: NotCopyable) -> None:
        """There can be no copies."""
        if self.result is None:
            self.result = why

    def clear(self) -> None:
        """Hold nothing any more; the job is over."""
        self.result = []
        self._slots = ()
        self._objects.clear()
        self.tasks.clear()
        self.awaited.clear()

    def _is_answered(self) -> bool:
        """Something is said of a step: whether the job takes notice."""
        self._under_way -= 1
        return self.result is None

    def _add(self, id_: bytes, ref: Any, *, ready: bool = False) -> None:
        if id_ in self._objects:
            return
        self._objects[id_] = _Object(ref)
        self._unfinished += 1
        if ready:
            self._task(Step.DUPLICATE, id_)
        else:
            self._under_way += 1
            self.awaited.append(id_)

    def _task(self, step: Step, id_: bytes) -> None:
        self._under_way += 1
        self.tasks.append((step, id_))

    def _met_inside(self, id_: bytes, refs: Sequence[Any]) -> None:
        """An object has others inside it, which are to be copied first."""
        found = self._objects[id_]
        found.inside = [ref.binary() for ref in refs]
        for inside, ref in zip(found.inside, refs, strict=True):
            self._add(inside, ref)
            if self._objects[inside].copy is None:
                self._objects[inside].around.append(id_)
                found.lacking += 1
        if not found.lacking:
            self._task(Step.REBUILD, id_)

    def _has_copy(self, id_: bytes, copy: Any) -> None:
        """The reference of an object's copy is known: rebuild what has waited for nothing else."""
        found = self._objects[id_]
        found.copy = copy
        for around in found.around:
            outer = self._objects[around]
            outer.lacking -= 1
            if not outer.lacking:
                self._task(Step.REBUILD, around)
        found.around.clear()

    def _look_if_over(self) -> None:
        if self.result is not None:
            return
        if not self._unfinished:
            self.result = [ref if id_ is None else self._objects[id_].copy for id_, ref in self._slots]
        elif not self._under_way:
            self.fail(_CIRCLE)  # each of the rest waits for another
