"""The values that callers give: whether they can be what they are given for. Pure.

numpy's numbers are numbers here: what counts is what a value can do (`__index__`, `numbers.Real`), not its class.

What always holds: a value that passes is a plain `int`, `float`, `bool` or `str` from then on; one that doesn't raises `TypeError` or
`ValueError` with the argument's name. No message is longer than a line, whatever was given.
"""

from __future__ import annotations

import math
import operator
from datetime import timedelta
from numbers import Real
from typing import Any

LONGEST_S = 3.2e9  # a century; far longer waits overflow in Ray and in the operating system
MOST_USES = 2**31 - 1
MOST_CHARACTERS = 1000  # of a label: each shard keeps it, and each listing and log line shows it
_MOST = 2**63 - 1  # that travels


def seconds(value: Any, name: str) -> float:
    """A time span in seconds, above zero and at most a century.

    Raises:
        ValueError: it is zero, negative, longer, or not a number.
        TypeError: it is no time span.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be seconds or a timedelta, not {type(value).__name__}")
    number: Any = value  # mypy can't compare `Real`s
    if not 0 < number <= LONGEST_S:
        raise ValueError(
            f"{name} must be more than 0 seconds, and at most {LONGEST_S:g} (a century), not {_shown(value)}"
        )
    return float(value)


def wait_s(value: Any, name: str) -> float:
    """Seconds to wait, which may be 0.

    Raises:
        ValueError: it is negative, longer than a century, or not a number.
        TypeError: it is no time span.
    """
    return 0.0 if not isinstance(value, bool) and isinstance(value, Real) and value == 0 else seconds(value, name)


def ttl_s(value: Any, name: str = "ttl") -> float | None:
    """A time to live in seconds; None for `math.inf`, which says that there is none, whatever the default.

    Raises:
        ValueError: it is zero, negative, longer than a century but not infinite, or not a number.
        TypeError: it is no time span.
    """
    return None if isinstance(value, Real) and value == math.inf else seconds(value, name)


def positive(value: Any, name: str, most: int = _MOST) -> int:
    """A whole number above zero.

    Raises:
        ValueError: it is zero, negative, or more than `most`.
        TypeError: it is no whole number.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} must be a whole number, not {type(value).__name__}")
    if number < 1:
        raise ValueError(f"{name} must be at least 1, not {_shown(number)}")
    if number > most:
        raise ValueError(f"{name} must be at most {most}, not {_shown(number)}; without {name} there is no limit")
    return number


def flag(value: Any, name: str) -> bool:
    """True or False; also numpy's.

    Raises:
        TypeError: it is neither.
    """
    kind = type(value)
    if kind is not bool and not (kind.__module__ == "numpy" and kind.__name__ in ("bool", "bool_")):
        raise TypeError(f"{name} must be True or False, not {_shown(value)}")
    return bool(value)


def label(value: Any, name: str = "label") -> str:
    """A text for people, of 1,000 characters at most.

    Raises:
        ValueError: it is longer, or can't be written as UTF-8.
        TypeError: it is no text.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {type(value).__name__}")
    if len(value) > MOST_CHARACTERS:
        raise ValueError(f"{name} must have at most {MOST_CHARACTERS} characters, not {len(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} must be text that can be written as UTF-8, not {_shown(value)}") from None
    return value


def _shown(value: Any) -> str:
    """A value in a message. Large numbers take long to write, and Python refuses very large ones."""
    if isinstance(value, int) and abs(value) > 10**30:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
