"""The tasks that copy objects: they run on the node that has the data and with the maker's runtime environment, and nowhere else.

A copy is what a task returns that is given the object: Ray writes it from the value that it maps from the store, so that the data
goes over memory once. References inside the value are told by the hook that Ray's own unpickler calls for each (`_ray.met_inside`); a
value that has some is read once more when they are copied, with the copies in their place.

What always holds: what a task returns is owned by whoever submitted it, the adopter; nothing here is imported by the registry's
processes but by name.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import _ray

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

_FETCH_S = 3600.0  # the object is there, but it may have to come from a slow disk or another node


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


def duplicate(refs: list[Ref]) -> tuple[Any, Inside | Unfit | ErrorInside]:
    """A copy of an object, if nothing inside it has to be copied first; and what was met inside."""
    import ray

    try:
        with _ray.met_inside() as met:
            value = _ray.get(refs[0], _FETCH_S)
    except (ray.exceptions.ObjectLostError, ray.exceptions.ReferenceCountingAssertionError) as error:
        return None, Unfit(Why.GONE, _first_line(error))
    except (
        ray.exceptions.GetTimeoutError,
        ray.exceptions.RaySystemError,
        ray.exceptions.ObjectStoreFullError,
    ) as error:
        return None, Unfit(Why.FAILED, _first_line(error))
    except ray.exceptions.RayError:
        return None, ErrorInside()
    mortal = [handle for handle in _ray.actors(met) if _ray.owner_of(handle)]
    if mortal:
        return None, Unfit(
            Why.UNSUPPORTED,
            f"it holds a handle of an actor, {mortal[0]!r}, which dies with the process that created it, and can't be copied: create "
            'it with lifetime="detached", or leave the handle out',
        )
    inside = list({ref.binary(): ref for ref in _ray.objects(met)}.values())
    return (None if inside else value), Inside(inside)


def rebuild(refs: list[Ref], copies: dict[bytes, Ref]) -> tuple[Any, bool]:
    """A copy of an object, with copies in the place of the references inside it, by the objects' ids; and that it went well."""
    with _ray.met_inside(copies):
        return _ray.get(refs[0], _FETCH_S), True


def fail_alike(refs: list[Ref]) -> Any:
    """A copy of an error."""
    return _ray.get(refs[0], _FETCH_S)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().partition("\n")[0]
