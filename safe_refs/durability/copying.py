"""The tasks that copy objects. They run on the node that has the data, with the runtime environment of the process that asked.

A copy is what a task returns that gets the object as its argument, so that the data passes through memory once. An object without
references inside is returned as the bytes that it is (`_ray.raw`): nobody unpickles it. Any other is read, by value. A hook that
Ray's own unpickler calls for each reference (`objects.met_inside`) finds the references inside. If there are any, the value is read
a second time after they have been copied, with the copies in their place.

    object without references:   duplicate ── (copy, Inside([]))
    object with references:      duplicate ── (NoCopy, Inside([...])) ── … those are copied … ── rebuild ── (copy, True)
    error of a failed task:      duplicate ── (NoCopy, ErrorInside()) ── fail_alike ── (the same error)

What always holds: the copy owner submits these tasks, and so owns what they return. In a copy's place a task returns a copy and
nothing else, or `NoCopy`, which no reader ever gets.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from .._ray import actors, environments, objects, raw
from .wire import NotCopyable, Why

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

_FETCH_S = 600.0  # the object exists, but it may have to come from a slow disk or another node


class Inside(NamedTuple):
    """The references of objects that were met in a value. If there are none, the value is copied already."""

    refs: list[Ref]


class ErrorInside(NamedTuple):
    """The value is an error: the task that was to make it has failed, or was cancelled."""


class NoCopy(NamedTuple):
    """Stands where no copy was made."""


def duplicate(refs: list[Ref], without: list[str]) -> tuple[Any, Inside | NotCopyable | ErrorInside]:
    """Copy an object, unless something inside it has to be copied first; and say what was met inside.

    Args:
        refs: it.
        without: folders of the registry's job, from which nothing may be imported.
    """
    import ray

    environments.leave_out(without)
    try:
        as_it_is = raw.stored(refs[0], _FETCH_S)
        if as_it_is is not None:
            return as_it_is, Inside([])
        with objects.met_inside() as met:
            value = objects.value(refs[0], _FETCH_S)
    # The order matters: a task may have failed with an error of its own that looks like one of Ray's below.
    except (ray.exceptions.RayTaskError, ray.exceptions.TaskCancelledError):
        return NoCopy(), ErrorInside()
    except (ray.exceptions.ObjectLostError, ray.exceptions.ReferenceCountingAssertionError) as error:
        return NoCopy(), NotCopyable(Why.GONE, _first_line(error))
    except (
        ray.exceptions.GetTimeoutError,
        ray.exceptions.RaySystemError,
        ray.exceptions.ObjectStoreFullError,
    ) as error:
        return NoCopy(), NotCopyable(Why.FAILED, _first_line(error))
    except ray.exceptions.RayError:
        return NoCopy(), ErrorInside()
    mortal = mortal_actor(met)
    if mortal is not None:
        return NoCopy(), mortal
    inside = list({ref.binary(): ref for ref in actors.only_objects(met)}.values())
    return (NoCopy() if inside else value), Inside(inside)


def mortal_actor(references: Iterable[Any]) -> NotCopyable | None:
    """Why these references can't be kept alive, if there is an actor among them that dies with its creator."""
    for handle in actors.only_actors(references):
        if actors.is_mortal(handle):
            return NotCopyable(
                Why.UNSUPPORTED,
                f"it holds a handle of an actor, {handle!r}, which dies with the process that created it, and can't be copied: "
                'create it with lifetime="detached", or leave the handle out',
            )
    return None


def rebuild(refs: list[Ref], without: list[str], copies: dict[bytes, Ref]) -> tuple[Any, bool]:
    """Copy an object with copies in the place of the references inside it (by the objects' ids); and say that it went well."""
    environments.leave_out(without)
    with objects.met_inside(copies):
        return objects.value(refs[0], _FETCH_S), True


def fail_alike(refs: list[Ref], without: list[str]) -> Any:
    """Copy an error: raise it."""
    environments.leave_out(without)
    return objects.value(refs[0], _FETCH_S)


def submit(task: Callable[..., Any], ref: Ref, args: tuple[Any, ...], *, env: str, node: str | None) -> tuple[Ref, Ref]:
    """Have Ray run one of these tasks.

    Args:
        task: which.
        ref: the object that it copies.
        args: what else it gets.
        env: what it needs to be like the process that asked; see `environments.surroundings`.
        node: where it should run; None for any node.

    Returns:
        The reference of the copy, and that of what the task says of it; of `fail_alike`, twice the former.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    options: dict[str, Any] = {
        "name": f"safe_refs.{task.__name__}",
        "num_cpus": 0,
        "enable_task_events": False,  # it is no task of the user's, who looks for those in `ray list tasks`
        "num_returns": 1 if task is fail_alike else 2,
        # Ray must not run it again: when a copy is lost with its node, the original is gone.
        "max_retries": 0,
    }
    if node is not None:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=True)
    surroundings = _surroundings(env)
    made = environments.submit(_remote(task), [[ref], surroundings.without, *args], options, surroundings.env)
    return (made, made) if task is fail_alike else made


@functools.lru_cache(maxsize=64)
def _surroundings(env: str) -> environments.ForTask:
    return environments.for_task(env)


@functools.cache  # of three tasks
def _remote(task: Callable[..., Any]) -> Any:
    """A task for Ray, which pickles it once."""
    import ray

    return ray.remote(task)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().partition("\n")[0]
