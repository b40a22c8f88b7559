"""The tasks that copy objects: they run on the node that has the data and with the maker's runtime environment, and nowhere else.

A copy is what a task returns that is given the object: Ray writes it from the value that it maps from the store, so that the data
goes over memory once. References inside the value are told by the hook that Ray's own unpickler calls for each (`_ray.met_inside`); a
value that has some is read once more when they are copied, with the copies in their place.

What always holds: what a task returns is owned by whoever submitted it, the adopter; no task returns anything but a copy in a copy's
place: Ray may run it once more when a copy is lost, and the original is gone by then.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import _ray

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

_FETCH_S = 600.0  # the object is there, but it may have to come from a slow disk or another node


class Inside(NamedTuple):
    """What was met in a value: references of objects. An empty one says that the value is copied already."""

    refs: list[Ref]


class Why(Enum):
    """What kept an object from being copied: its owner is dead; what it is, or holds; anything else that went wrong."""

    GONE = 1
    UNSUPPORTED = 2
    FAILED = 3


class Unfit(NamedTuple):
    """Why an object can't be copied, and in words for people."""

    why: Why
    reason: str


class ErrorInside(NamedTuple):
    """The value is an error: the task that was to make it has failed, or was cancelled."""


class Held(NamedTuple):
    """What stands where no copy was made. Nobody ever gets it."""


def duplicate(refs: list[Ref]) -> tuple[Any, Inside | Unfit | ErrorInside]:
    """A copy of an object, if nothing inside it has to be copied first; and what was met inside."""
    import ray

    try:
        with _ray.met_inside() as met:
            value = _ray.value(refs[0], _FETCH_S)
    except (ray.exceptions.RayTaskError, ray.exceptions.TaskCancelledError):
        return Held(), ErrorInside()  # also where the task's own error looks like one of those below
    except (ray.exceptions.ObjectLostError, ray.exceptions.ReferenceCountingAssertionError) as error:
        return Held(), Unfit(Why.GONE, _first_line(error))
    except (
        ray.exceptions.GetTimeoutError,
        ray.exceptions.RaySystemError,
        ray.exceptions.ObjectStoreFullError,
    ) as error:
        return Held(), Unfit(Why.FAILED, _first_line(error))
    except ray.exceptions.RayError:
        return Held(), ErrorInside()
    mortal = mortal_actor(met)
    if mortal is not None:
        return Held(), mortal
    inside = list({ref.binary(): ref for ref in _ray.objects(met)}.values())
    return (Held() if inside else value), Inside(inside)


def mortal_actor(references: Iterable[Any]) -> Unfit | None:
    """Why these references of objects and actors can't be kept alive, if there is an actor among them that dies with its creator."""
    for handle in _ray.actors(references):
        if _ray.is_mortal(handle):
            return Unfit(
                Why.UNSUPPORTED,
                f"it holds a handle of an actor, {handle!r}, which dies with the process that created it, and can't be copied: "
                'create it with lifetime="detached", or leave the handle out',
            )
    return None


def rebuild(refs: list[Ref], copies: dict[bytes, Ref]) -> tuple[Any, bool]:
    """A copy of an object, with copies in the place of the references inside it, by the objects' ids; and that it went well."""
    with _ray.met_inside(copies):
        return _ray.value(refs[0], _FETCH_S), True


def fail_alike(refs: list[Ref]) -> Any:
    """A copy of an error."""
    return _ray.value(refs[0], _FETCH_S)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().partition("\n")[0]
