"""Many references travel in one small object that contains them, where that costs Ray less than each by itself.

What always holds: a box is opened by whoever gets it before anything else is done with it, and dropped at once; what is in it is then
borrowed as if it had come by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import _ray

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

# References, from which on a box pays off, a little, by `python -m benchmarks.boxes`; with 64 it costs a fifth to a third more.
BOXED = 600


class Box(NamedTuple):
    """References on their way."""

    inside: Ref


def box(refs: Sequence[Ref]) -> Box:
    """Put references into a box."""
    return Box(_ray.put(list(refs)))


def opened(answer: Any, timeout_s: float) -> Any:
    """An answer, with what is in a box in its place."""
    if type(answer) is Box:
        return _ray.fetch(answer.inside, timeout_s)
    if type(answer) is tuple and len(answer) == 2 and type(answer[1]) is Box:
        return answer[0], _ray.fetch(answer[1].inside, timeout_s)
    return answer
