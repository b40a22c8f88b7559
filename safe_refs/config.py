"""Settings of this process: where the registry is, and how long to wait for it.

Three sources in rising precedence: `init(...)`, environment variables `SAFE_REFS_<NAME>`, and the arguments of a call. The
environment is read at each use, so that a worker's `runtime_env` works; what can't be read as a number is refused with the
variable's name. Limits are the registry's, not the process's: `init` passes them on, and this module only keeps what this
process was given, for the registry that it may have to start.
"""

from __future__ import annotations

import contextvars
import math
import os
import re
import time
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple, TypeVar

DEFAULT_REGISTRY = "default"
DEFAULT_TIMEOUT_S = 30.0
DEFAULT_DURABLE_TIMEOUT_S = 600.0
_LONGEST_S = 3.2e9  # a century; far longer waits overflow in Ray and in the operating system
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # of a registry: `orders:1` would be the actor of a shard of `orders`

_OFF = ("0", "false", "no", "off")

_N = TypeVar("_N", int, float)


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

    max_leases: int | None = None
    max_references: int | None = None
    max_bytes: int | None = None
    max_leases_per_job: int | None = None
    max_references_per_job: int | None = None
    max_bytes_per_job: int | None = None
    max_tombstones: int = 100_000
    tombstone_age_s: float = 86_400.0
    sweep_s: float = 1.0

    def share(self, shards: int, replicas: int) -> Limits:
        """One shard's share, as leases spread evenly: that part of each limit, rounded up."""
        if shards == replicas:
            return self
        counts = {name: value for name, value in self._asdict().items() if name.startswith("max_") and value}
        return self._replace(**{name: -(-value * replicas // shards) for name, value in counts.items()})

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


class _Given:
    """What `init` was given in this process. Written by `init` alone; each field is replaced whole, so that it needs no lock."""

    registry: str | None = None
    timeout: float | None = None
    durable_timeout: float | None = None
    ttl: float | None = None
    limits: Limits | None = None
    shards: int | None = None
    replicas: int | None = None
    wait: bool | None = None


_given = _Given()


# What `pipeline` says to the code inside it: False, don't wait. None outside.
waiting: contextvars.ContextVar[bool | None] = contextvars.ContextVar("safe_refs_waiting", default=None)


class Settings(NamedTuple):
    """The settings of this process that every new lease needs.

    Attributes:
        registry: name of the registry that it goes to.
        timeout_s: seconds to wait for that.
        ttl_s: the time to live, in seconds, of a lease that is made without one; None for no limit.
        waits: whether `dumps` and `pin` wait until the registry holds what they pass on.
    """

    registry: str
    timeout_s: float
    ttl_s: float | None
    waits: bool


def settings(wait: bool | None = None) -> Settings:
    """The settings as they are now: the environment's, else those of `init`, else the defaults.

    Args:
        wait: whether the call that asks is to wait, if it says so.

    Raises:
        ValueError: a variable of the environment has no value that it may have.
    """
    get = os.environ.get
    registry = get("SAFE_REFS_REGISTRY") or _given.registry or DEFAULT_REGISTRY
    timeout = _environment("SAFE_REFS_TIMEOUT", float) if get("SAFE_REFS_TIMEOUT") else None
    ttl = _environment("SAFE_REFS_TTL", float) if get("SAFE_REFS_TTL") else None
    waits = waiting.get() if wait is None else wait
    if waits is None:
        text = get("SAFE_REFS_WAIT")
        waits = text not in _OFF if text else _given.wait is not False
    if registry is not DEFAULT_REGISTRY and _NAME.fullmatch(registry) is None:
        checked_name(registry)
    return Settings(registry, timeout or _given.timeout or DEFAULT_TIMEOUT_S, ttl or _given.ttl, waits)


def want(shards: int | None, replicas: int | None) -> None:
    """Keep which topology `init` asked for; None leaves a setting as it is."""
    if shards is not None:
        _given.shards = shards
    if replicas is not None:
        _given.replicas = replicas


def keep(
    *,
    registry: str | None,
    timeout: float | None,
    ttl: float | None,
    limits: Limits | None,
    wait: bool | None = None,
    durable_timeout: float | None = None,
) -> None:
    """Keep what `init` was given; None leaves a setting as it is."""
    if durable_timeout is not None:
        _given.durable_timeout = seconds(durable_timeout, "durable_timeout")
    if wait is not None:
        _given.wait = wait
    if registry is not None:
        _given.registry = registry
    if timeout is not None:
        _given.timeout = seconds(timeout, "timeout")
    if ttl is not None:
        _given.ttl = ttl
    if limits is not None:
        _given.limits = limits


def registry_name(given: str | None = None) -> str:
    """Name of the registry that new leases go to.

    Raises:
        ValueError: it is no name for a registry.
    """
    return settings().registry if given is None else checked_name(given)


def checked_name(name: str) -> str:
    """A registry's name, if it is one.

    Raises:
        ValueError: it isn't: letters, digits and `_.-`, 1 to 64 of them.
    """
    if not _NAME.fullmatch(str(name)):
        raise ValueError(
            f"a registry's name is 1 to 64 letters, digits, dots, dashes and underscores, not {name!r:.80}"
        )
    return name


def deadline(given: float | timedelta | None = None) -> Deadline:
    """Until when a call that begins now may wait for the registry; see `timeout_s`."""
    if given is None and not os.environ.get("SAFE_REFS_TIMEOUT"):
        seconds_given = _given.timeout or DEFAULT_TIMEOUT_S
    else:
        seconds_given = timeout_s(given)
    return Deadline(time.monotonic() + seconds_given, seconds_given)


def durable_deadline(given: float | timedelta | None = None) -> Deadline:
    """Until when a call that begins now may wait until copies exist; see `durable_timeout_s`."""
    seconds_given = durable_timeout_s(given)
    return Deadline(time.monotonic() + seconds_given, seconds_given)


def timeout_s(given: float | timedelta | None = None) -> float:
    """How long a call may wait for the registry, in seconds."""
    if given is not None:
        return seconds(given, "timeout")
    return _environment("SAFE_REFS_TIMEOUT", float) or _given.timeout or DEFAULT_TIMEOUT_S


def durable_timeout_s(given: float | timedelta | None = None) -> float:
    """How long to wait until copies exist, in seconds: until the objects do, and for the copying."""
    if given is not None:
        return seconds(given, "timeout")
    return _environment("SAFE_REFS_DURABLE_TIMEOUT", float) or _given.durable_timeout or DEFAULT_DURABLE_TIMEOUT_S


def check_topology(shards: int, replicas: int) -> None:
    """Whether a registry can have so many shards and replicas.

    Raises:
        ValueError: it can't.
    """
    if replicas > shards:
        raise ValueError(
            f"{replicas} replicas need as many shards at least, not {shards}: give shards={replicas} or more"
        )


def wanted() -> tuple[int | None, int | None]:
    """How many shards and replicas this process asks for; None where it doesn't say."""
    return (
        _environment("SAFE_REFS_SHARDS", int) or _given.shards,
        _environment("SAFE_REFS_REPLICAS", int) or _given.replicas,
    )


def anchors() -> bool:
    """Whether a registry that starts makes owners know who holds their objects (`anchoring`). `SAFE_REFS_ANCHORING=0` says no."""
    return (os.environ.get("SAFE_REFS_ANCHORING") or "1") not in _OFF


def limits() -> Limits:
    """The limits for a registry that this process starts: those of `init`, and over them `SAFE_REFS_MAX_LEASES` and the like."""
    given = _given.limits or Limits()
    found: dict[str, int | float] = {}
    for name in Limits._fields:
        value = _environment("SAFE_REFS_" + name.upper(), float if name.endswith("_s") else int)
        if value is not None:
            found[name] = value
    return given._replace(**found)  # type: ignore[arg-type] # whole numbers where the fields want them


def seconds(value: float | timedelta, name: str) -> float:
    """A time span in seconds, above zero and at most a century.

    Raises:
        ValueError: it is zero, negative, longer, or not a number.
        TypeError: it is no time span.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be seconds or a timedelta, not {type(value).__name__}")
    if not 0 < value <= _LONGEST_S:
        raise ValueError(
            f"{name} must be more than 0 seconds, and at most {_LONGEST_S:g} (a century), not {value!r:.30}"
        )
    return float(value)


def ttl_s(value: float | timedelta) -> float | None:
    """A time to live in seconds; None for `math.inf`, which says that there is none, whatever the default.

    Raises:
        ValueError: it is zero, negative, longer than a century but not infinite, or not a number.
        TypeError: it is no time span.
    """
    return None if isinstance(value, float) and value == math.inf else seconds(value, "ttl")


def positive(value: int, name: str) -> int:
    """A whole number above zero.

    Raises:
        ValueError: it is zero or negative.
        TypeError: it is no whole number.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return value


def _environment(name: str, convert: Callable[[str], _N]) -> _N | None:
    text = os.environ.get(name)
    if not text:
        return None
    try:
        value = convert(text)
    except ValueError:
        raise ValueError(f"the environment variable {name} must be a number, not {text!r}") from None
    if not 0 < value <= _LONGEST_S:
        raise ValueError(
            f"the environment variable {name} must be more than 0, and at most {_LONGEST_S:g}, not {text!r}"
        )
    return value
