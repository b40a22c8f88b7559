"""What can be set, and what values it may have. Pure: `settings` says which values hold in this process.

Every setting is one row of `SETTINGS`: its name (as an argument of `init`, and behind `SAFE_REFS_` as an environment variable), the
values that it takes, its default, and what it is for. `docs/settings.md` is made from this table.

What always holds: a value that `init` or the environment gives is checked here, before anything goes by it.
"""

from __future__ import annotations

import contextvars
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple, TypeAlias

from .bounds import Pause, Whole
from .bounds import Span as Seconds
from .checks import flag as flag  # others take the checks from here, as they do what can be set
from .checks import positive as positive
from .checks import seconds as seconds
from .checks import ttl_s as ttl_s

DEFAULT_REGISTRY = "default"
NO_LIMIT = math.inf
MOST_SHARDS = 1000
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # of a registry: `orders:1` would be the actor of a shard of `orders`

_FLAGS = {"0": False, "no": False, "off": False, "false": False, "1": True, "yes": True, "on": True, "true": True}

Span: TypeAlias = float | timedelta  # a time, as callers give it: seconds, or that

# What `pipeline` says to the code inside it: False, don't wait. None outside.
waiting: contextvars.ContextVar[bool | None] = contextvars.ContextVar("safe_refs_waiting", default=None)


class Limits(NamedTuple):
    """What a registry will hold at most, and how it keeps house. None is no limit.

    Attributes:
        max_leases: live leases.
        max_references: references in all live leases together, one in several leases counted in each.
        max_bytes: bytes of the objects behind them, each object once, however many leases hold it.
        max_leases_per_job: live leases that one job made.
        max_references_per_job: references in them.
        max_bytes_per_job: bytes of the objects behind those, each once.
        max_tombstones: ended leases that the registry remembers, to tell late callers how they ended.
        tombstone_age_s: seconds for which it remembers them.
        sweep_s: seconds between two looks at whether owners still live.
    """

    max_leases: Whole | None = None
    max_references: Whole | None = None
    max_bytes: Whole | None = None
    max_leases_per_job: Whole | None = None
    max_references_per_job: Whole | None = None
    max_bytes_per_job: Whole | None = None
    max_tombstones: Whole = 100_000
    tombstone_age_s: Seconds = 86_400.0
    sweep_s: Pause = 1.0

    def share(self, shards: int, replicas: int) -> Limits:
        """One shard's share, as leases spread evenly: that part of each limit, rounded up."""
        if shards == replicas:
            return self
        counts = {name: value for name, value in self._asdict().items() if name.startswith("max_") and value}
        return self._replace(**{name: -(-value * replicas // shards) for name, value in counts.items()})

    def to_bytes(self) -> bytes:
        """For Ray's key-value store."""
        import json  # whoever only pickles plain objects needn't wait for it

        return json.dumps(self._asdict()).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Limits:
        """What `to_bytes` gave, of another release too: a limit that this one doesn't know is left out."""
        import json

        return cls(**{name: value for name, value in json.loads(data).items() if name in cls._fields})

    @property
    def weighs(self) -> bool:
        """Whether there is a limit in bytes, so that objects' sizes have to be known."""
        return self.max_bytes is not None or self.max_bytes_per_job is not None


class Deadline(NamedTuple):
    """Until when a call may wait, in monotonic seconds, and how many seconds it was given, for its error."""

    at: float
    timeout_s: float

    def left_s(self) -> float:
        """Seconds that are left; above zero, as some of Ray's calls take 0 for "without a limit"."""
        return max(self.at - time.monotonic(), 0.001)

    def is_over(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self.at


def check_topology(shards: int, replicas: int) -> None:
    """Whether a registry can have so many shards and replicas.

    Raises:
        ValueError: it can't.
    """
    if replicas > shards:
        raise ValueError(
            f"{replicas} replicas need as many shards at least, not {shards}: give shards={replicas} or more"
        )


def checked_name(name: str, argument: str = "registry") -> str:
    """A registry's name, if it is one.

    Raises:
        TypeError: it is no string.
        ValueError: it is no name: letters, digits and `_.-`, 1 to 64 of them.
    """
    if not isinstance(name, str):
        raise TypeError(f"{argument} must be a registry's name, a string, not {type(name).__name__}")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"a registry's name is 1 to 64 letters, digits, dots, dashes and underscores, not {name!r:.80}"
        )
    return name


def _limit(value: float, name: str) -> float:
    """A whole number above zero, or `math.inf` for no limit."""
    return value if value == math.inf else positive(value, name)


def _shards(value: int, name: str) -> int:
    """How many shards: each is an actor."""
    count = positive(value, name)
    if count > MOST_SHARDS:
        raise ValueError(
            f"{name} must be at most {MOST_SHARDS}, as each is an actor: one or two for each node are plenty"
        )
    return count


def _ttl(value: float | timedelta, name: str) -> float:
    """A time to live in seconds, or `math.inf` for none."""
    found = ttl_s(value, name)
    return math.inf if found is None else found


def _whole(text: str) -> float:
    return math.inf if text == "inf" else int(text)


class Setting(NamedTuple):
    """A setting.

    Attributes:
        name: as an argument of `init`.
        check: gives a value that is allowed, or raises `TypeError` or `ValueError` with the name.
        read: reads it from text; raises `ValueError` or `KeyError`.
        values: what it may be, for people.
        default: where nobody says anything.
        about: what it is for.
        of_registry: it is a limit, or how a registry keeps house.
    """

    name: str
    check: Callable[[Any, str], Any]
    read: Callable[[str], Any]
    values: str
    default: Any
    about: str
    of_registry: bool = False

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return "SAFE_REFS_" + self.name.upper()

    def of_text(self, text: str) -> Any:
        """Its value, from its environment variable.

        Raises:
            ValueError: that has a value that it can't have.
        """
        try:
            return self.check(self.read(text), self.name)
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"the environment variable {self.variable} must be {self.values}, not {text!r:.80}"
            ) from None


_SPAN = (seconds, float, "seconds, above 0")
_TTL = (_ttl, float, "seconds, above 0, or inf for no limit")
_COUNT = (positive, int, "a whole number, 1 or more")
_SHARDS = (_shards, int, f"a whole number, 1 to {MOST_SHARDS}")
_LIMIT = (_limit, _whole, "a whole number, 1 or more, or inf for no limit")
_FLAG = (flag, _FLAGS.__getitem__, "0 or 1 (or no and yes, off and on, false and true)")

SETTINGS: tuple[Setting, ...] = (
    Setting(
        *("registry", checked_name, str, "a name: 1 to 64 letters, digits, dots, dashes and underscores"),
        *(DEFAULT_REGISTRY, "the registry that new leases go to"),
    ),
    Setting("timeout", *_SPAN, 30.0, "how long a call waits for the registry"),
    Setting("durable_timeout", *_SPAN, 600.0, "how long `durable=True` waits until the objects exist and are copied"),
    Setting("ttl", *_TTL, None, "the time to live of leases that are made without one; no limit unless set"),
    Setting("require_ttl", *_FLAG, False, "refuse to make, or to renew, a lease without a time to live"),
    Setting("wait", *_FLAG, True, "whether `dumps` and `pin` wait until the registry holds the references"),
    Setting("shards", *_SHARDS, None, "how many shards a registry that starts has; as many as replicas unless set"),
    Setting("replicas", *_COUNT, None, "how many shards of a registry that starts hold each lease; 1 unless set"),
    Setting(
        "anchoring",
        *_FLAG,
        True,
        "whether objects' owners learn who borrows them (docs/lifetimes.md); 0 is for tests",
    ),
    Setting("max_leases", *_LIMIT, None, "the most live leases", True),
    Setting("max_references", *_LIMIT, None, "the most references in live leases", True),
    Setting("max_bytes", *_LIMIT, None, "the most bytes of the objects behind live leases", True),
    Setting("max_leases_per_job", *_LIMIT, None, "the most live leases that one job has made", True),
    Setting("max_references_per_job", *_LIMIT, None, "the most references in live leases of one job", True),
    Setting("max_bytes_per_job", *_LIMIT, None, "the most bytes of the objects behind live leases of one job", True),
    Setting(
        "max_tombstones", *_COUNT, 100_000, "how many ended leases the registry remembers, to say how they ended", True
    ),
    Setting("tombstone_age_s", *_SPAN, 86_400.0, "for how many seconds it remembers them", True),
    Setting("sweep_s", *_SPAN, 1.0, "seconds between two looks at whether owners still live", True),
)
BY_NAME: Mapping[str, Setting] = {setting.name: setting for setting in SETTINGS}


def with_limits(limits: Limits, given: Mapping[str, Any]) -> Limits:
    """Limits, with those that are given in place of theirs; `math.inf` takes one away."""
    changes: dict[str, Any] = {name: None if value == math.inf else value for name, value in given.items()}
    return limits._replace(**changes)


# `os.environ` encodes the name and decodes the value at each look, which costs half a microsecond; twenty looks into the dictionary
# that it keeps cost one. Private to CPython: `os.environ._data`. Without it the same is done by `os.environ` itself.
_data: Any = getattr(os.environ, "_data", None)
ENVIRONMENT: Mapping[Any, Any] = _data if isinstance(_data, dict) else os.environ
KEYS: tuple[Any, ...] = tuple(
    os.fsencode(setting.variable) if ENVIRONMENT is _data else setting.variable for setting in SETTINGS
)


def of_texts(found: tuple[Any, ...]) -> dict[str, Any]:
    """The values of the environment's variables, by name. An empty variable is not set.

    Args:
        found: their texts, in the order of `KEYS`.

    Raises:
        ValueError: one has a value that it can't have, whether it is needed now or not.
    """
    return {
        setting.name: setting.of_text(os.fsdecode(text)) for setting, text in zip(SETTINGS, found, strict=True) if text
    }


def first_s(given: float | timedelta | None) -> float:
    """How long a call waits for the settings themselves, in seconds: which may say how long it is to wait for the rest.

    Args:
        given: its timeout; None goes by the environment, or else the default.
    """
    if given is not None:
        return seconds(given, "timeout")
    return float(of_texts(tuple(map(ENVIRONMENT.get, KEYS))).get("timeout", BY_NAME["timeout"].default))


def unknown_variables() -> list[str]:
    """Variables that begin as ours do, and that nobody reads: mistyped, most likely. Those that begin as the tests' do are theirs."""
    ours = {setting.variable for setting in SETTINGS}
    return sorted(
        name
        for name in os.environ
        if name.startswith("SAFE_REFS_") and not name.startswith("SAFE_REFS_TEST") and name not in ours
    )
