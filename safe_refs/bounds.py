"""What values may have that travel in a call to an actor of ours, as types: how long, how large, which. Pure.

A type that says nothing more has the bounds of `registry.received.PLAIN`, so that a call, or a field of one, is never without bounds.
For mypy these types are the plain ones.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, NamedTuple

from .checks import LONGEST_S, MOST_BYTES


class Length(NamedTuple):
    """How many bytes: of bytes, or of a text in UTF-8."""

    least: int
    most: int


class Range(NamedTuple):
    """From which number to which, both included. Not-a-number is in no range."""

    least: float
    most: float


class OneOf(NamedTuple):
    """One of these texts."""

    texts: frozenset[str]


class IsReference:
    """An `ObjectRef`, or the handle of an actor."""


class IsAddress:
    """The address of a process, as Ray packs it; or nothing."""


LeaseId = Annotated[bytes, Length(16, 16)]
UseId = Annotated[bytes, Length(0, 16)]
Epoch = Annotated[bytes, Length(8, 8)]
Key = Annotated[bytes, Length(8, 8)]
Mark = Annotated[bytes, Length(20, 20)]
ObjectId = Annotated[bytes, Length(28, 28)]
Address = Annotated[bytes, Length(0, MOST_BYTES), IsAddress()]
Reference = Annotated[Any, IsReference()]

Name = Annotated[str, Length(0, MOST_BYTES)]  # also a label, a source line
Environment = Annotated[str, Length(0, 4 * 2**20)]  # what `environments.surroundings` gives

Whole = Annotated[int, Range(0, 2**63 - 1)]
ShardNumber = Annotated[int, Range(0, 999)]  # below `config.MOST_SHARDS`
Span = Annotated[float, Range(0, LONGEST_S)]  # seconds
Pause = Annotated[float, Range(1e-6, LONGEST_S)]  # seconds between two looks
AnySpan = Annotated[float, Range(-LONGEST_S, LONGEST_S)]  # of what may be over, or may be meant as "until then"
Time = Annotated[float, Range(0, 1e11)]  # seconds since the epoch, as far as there is a date for them
Order = Annotated[float, Range(-math.inf, math.inf)]  # what a page of a listing goes by
