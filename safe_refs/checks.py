"""The values that callers give: whether they can be what they are given for. Pure.

numpy's numbers are numbers here: what counts is what a value can do (`__index__`, `numbers.Real`), not its class.

What always holds: a value that passes is a plain `int`, `float`, `bool` or `str` from then on; one that doesn't raises `TypeError` or
`ValueError` with the argument's name. No message is longer than a line, whatever was given.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from datetime import timedelta
from numbers import Real
from typing import Any

LONGEST_S = 3.2e9  # a century; far longer waits overflow in Ray and in the operating system
MOST_USES = 2**31 - 1
MOST_BYTES = 1024  # of a label or a name, in UTF-8: each shard keeps it, and each listing and log line shows it
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
    """A text for people, of 1 KiB at most, in UTF-8.

    Raises:
        ValueError: it is longer, or can't be written as UTF-8.
        TypeError: it is no text.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {type(value).__name__}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{name} must be text that can be written as UTF-8, not {_shown(value)}") from None
    if size > MOST_BYTES:
        raise ValueError(f"{name} must have at most {MOST_BYTES} bytes in UTF-8, not {size}")
    return value


def check_ordered(several: object) -> None:
    """Refuse what has no order, or of which it isn't plain what is meant.

    Raises:
        TypeError: it is a set, or a dict.
    """
    if isinstance(several, (set, frozenset)):
        raise TypeError(f"a {type(several).__name__} has no order: pass a list of what is in it")
    if isinstance(several, Mapping):
        raise TypeError(f"a {type(several).__name__} may mean its keys or its values: pass list(d) or list(d.values())")


def shown(text: str) -> str:
    """A text that somebody else has written, for people: one line of 1,024 characters at most, its control characters as escapes.

    For errors, log lines and tables: a terminal obeys control characters, and whoever reads a log takes a line for a line.
    """
    text = text if len(text) <= MOST_BYTES else text[: MOST_BYTES - 3] + "..."
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _shown(value: Any) -> str:
    """A value in a message. Large numbers take long to write, and Python refuses very large ones."""
    if isinstance(value, int) and abs(value) > 10**30:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
