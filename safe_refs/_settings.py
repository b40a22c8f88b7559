"""Which settings hold in this process: `current`, for everybody, and what `init` keeps.

Five sources, the first that says something decides, setting by setting:

    the call's argument, or a scope's or pipeline's around it
    `init(...)` in this process                 replaced as a whole by the next `init`; gone with the connection to Ray
    `init(...)` in the driver of this job       for its tasks and actors; kept in Ray's control store, as long as the job is
    the environment: SAFE_REFS_…
    the default

What always holds: what a process has read of its job's settings it reads again once it is `FRESH_S` old, before it goes by it. So an
`init` in a driver that changes them waits that long, and when it returns, every task and actor of the job goes by them. (While Ray's
control service does not respond, they go by what they have read last.) The environment is read and checked as a whole, whenever it
has changed.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from types import MappingProxyType
from typing import Any, NamedTuple

from . import callers, config
from ._ray import control, requests, workers
from ._ray.workers import Connection
from .config import BY_NAME, ENVIRONMENT, KEYS, SETTINGS, Deadline, Limits
from .errors import RegistryUnavailableError

FRESH_S = float(os.environ.get("SAFE_REFS_TESTS_FRESH_S", "0.5"))
_BRIEF_S = 0.3  # how long a call waits for the control service to read settings again
_AGAIN_S = 2.0  # after that has failed
_MOST_CONNECTIONS = 8
_AS_THEY_ARE = ("registry", "require_ttl", "wait", "shards", "replicas", "anchoring")
_MOST_LOOKS = 3  # at whether the control service answers, after something was written
# In the control store: the job's settings, as JSON; and whether a process other than the driver has read them, or is about to.
_JOBS_KEY, _READ_KEY = "settings", "settings-read"


@dataclass(frozen=True, repr=False)
class Settings:
    """The settings that hold in this process now, as `settings()` gives them.

    Attributes:
        registry: name of the registry that new leases go to.
        timeout_s: seconds that a call waits for the registry.
        durable_timeout_s: seconds that `durable=True` waits until the copies exist.
        ttl_s: time to live, in seconds, of leases that are made without one; None for no limit.
        require_ttl: whether leases without a time to live are refused.
        wait: whether `dumps` and `pin` wait until the registry holds the references.
        shards: how many shards a registry that is started here has; None where nobody says.
        replicas: how many of them hold each lease; None likewise.
        anchoring: whether objects' owners learn who borrows them.
        limits: of a registry that is started here.
        sources: for each setting, by its name as an argument of `init`, who says so: `init`, `job` (the `init` of the job's driver),
            the environment variable's name, or `default`.
    """

    registry: str
    timeout_s: float
    durable_timeout_s: float
    ttl_s: float | None
    require_ttl: bool
    wait: bool
    shards: int | None
    replicas: int | None
    anchoring: bool
    limits: Limits
    sources: Mapping[str, str]

    def __repr__(self) -> str:
        values = {
            each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("limits", "sources")
        }
        values |= self.limits._asdict()
        said_by = {name if name in self.sources else name.removesuffix("_s"): name for name in values}
        rows = [f"  {said_by[name]:<22} {values[said_by[name]]!s:<12} {self.sources[name]}" for name in said_by]
        return "\n".join(("<safe_refs settings", *rows)) + ">"

    def __reduce__(self) -> tuple[object, ...]:
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return _made, (values | {"sources": dict(self.sources)},)


def _made(values: dict[str, Any]) -> Settings:
    return Settings(**values | {"sources": MappingProxyType(values["sources"])})


class _Layers:
    """What was said for one connection.

    Attributes:
        given: by `init` in this process.
        job: by `init` in the driver of the job, where this is another process.
        until: when that is to be read again, in monotonic seconds; None as long as it was never read.
        published: what this process, a driver, has said for its job.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given
        self.job: Mapping[str, Any] = {}
        self.until: float | None = None
        self.published = b"{}"


class _Known(NamedTuple):
    """Settings, and for how long they hold: for one connection, one environment, and until a moment."""

    connection: Connection | None
    texts: tuple[Any, ...]
    until: float
    settings: Settings


# By connection. None is a process that isn't connected, a worker in its setup hook: what is said there is said for its connection.
# At most _MOST_CONNECTIONS, then the oldest goes. No lock: each change is one step.
_layers: dict[Connection | None, _Layers] = {}
_known: _Known | None = None  # the last that was found; replaced whole


def current(timeout: float | timedelta | None = None) -> Settings:
    """The settings that hold now.

    Args:
        timeout: what the call has been given: no longer is Ray's control service waited for, if the job's settings have to be read.

    Raises:
        ValueError: a variable of the environment has a value that it can't have.
        RegistryUnavailableError: the job's settings are not known, and Ray's control service does not answer.
    """
    known = _known
    try:
        connection = workers.connection()
    except RegistryUnavailableError:
        connection = None
    texts = tuple(map(ENVIRONMENT.get, KEYS))
    if known is not None and known.texts == texts and known.connection == connection and time.monotonic() < known.until:
        return known.settings
    return _resolve(connection, texts, config.first_s(timeout))


def is_fresh() -> bool:
    """Whether `current` needs not ask Ray's control service, and so needs not wait."""
    connection = _connection()
    layers = _layers.get(connection)
    return (
        connection is None
        or workers.is_driver()
        or (layers is not None and layers.until is not None and time.monotonic() < layers.until)
    )


def deadline(given: float | timedelta | None = None) -> Deadline:
    """Until when a call that begins now may wait for the registry."""
    allowed_s = current().timeout_s if given is None else config.seconds(given, "timeout")
    return Deadline(time.monotonic() + allowed_s, allowed_s)


def durable_deadline(given: float | timedelta | None = None) -> Deadline:
    """Until when a call that begins now may wait until copies exist: until the objects do, and for the copying."""
    return deadline(current().durable_timeout_s if given is None else given)


def timeout_s(given: float | timedelta | None = None) -> float:
    """How long a call may wait for the registry, in seconds."""
    return deadline(given).timeout_s


def registry_name(given: str | None = None) -> str:
    """Name of the registry that a call means.

    Raises:
        TypeError: it is no string.
        ValueError: it is no name for a registry.
    """
    return current().registry if given is None else config.checked_name(given)


def checked(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as arguments give them: those that are not None, checked.

    Raises:
        TypeError: one is of the wrong type.
        ValueError: one has a value that it can't have.
    """
    return {name: BY_NAME[name].check(value, name) for name, value in arguments.items() if value is not None}


def keep(new: Mapping[str, Any]) -> None:
    """Keep what `init` was given in this process, in place of all that it was given before."""
    global _known
    _of(_connection()).given = dict(new)
    _known = None


def wished(new: Mapping[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """The settings that would hold if `init` were given these; and what all sources say that is no default, for `publish`."""
    connection = _connection()
    values, sources = _layered(new, _of(connection).job, config.of_texts(tuple(map(ENVIRONMENT.get, KEYS))))
    return _made_of(values, sources), {name: value for name, value in values.items() if sources[name] != "default"}


def publish(new: Mapping[str, Any], until: Deadline) -> None:
    """If this is a driver: tell the tasks and actors of its job. When this returns, all of them go by it.

    Raises:
        RegistryUnavailableError: Ray's control service does not answer in time; they don't go by it, as far as is known here.
    """
    import json  # here and below: whoever only pickles plain objects needn't wait for it

    connection = workers.connection()
    layers, text = _of(connection), json.dumps(dict(new), sort_keys=True).encode()
    if not workers.is_driver() or text == layers.published:
        return
    before = layers.published
    try:
        control.job_put(connection.job, _JOBS_KEY, text, until)
        layers.published = text
        _wait_until_read(connection.job)
    except BaseException:  # a signal handler's: nothing is to be changed
        layers.published = b""  # nobody knows now what is there
        with contextlib.suppress(RegistryUnavailableError):
            control.job_put(connection.job, _JOBS_KEY, before, requests.soon(_BRIEF_S))
            layers.published = before
        raise


def _wait_until_read(job: str) -> None:
    """Wait until all processes of a job go by what was just written for it, however much time the caller has left."""
    # Who reads says so first. So either its process is seen here, or it reads what was just written.
    with contextlib.suppress(RegistryUnavailableError):
        if control.job_get(job, _READ_KEY, requests.soon(_BRIEF_S)) is None:
            return
    for _ in range(_MOST_LOOKS):
        time.sleep(FRESH_S)
        begun = time.monotonic()
        with contextlib.suppress(RegistryUnavailableError):
            control.job_get(job, _JOBS_KEY, requests.soon(_BRIEF_S))
            if time.monotonic() - begun < _BRIEF_S:
                return
        time.sleep(_AGAIN_S)  # a process may have asked in vain meanwhile


def _connection() -> Connection | None:
    try:
        return workers.connection()
    except RegistryUnavailableError:
        return None


def _of(connection: Connection | None) -> _Layers:
    if (found := _layers.get(connection)) is None:
        hook = _layers.get(None)  # this worker's setup hook came before its connection
        while len(_layers) >= _MOST_CONNECTIONS:
            _layers.pop(next((each for each in list(_layers) if each is not None), None), None)
        found = _layers.setdefault(connection, _Layers({} if hook is None else hook.given))
    return found


def _resolve(connection: Connection | None, texts: tuple[Any, ...], patience_s: float) -> Settings:
    """Find out which settings hold, and for how long."""
    global _known
    if _known is None or _known.texts != texts:
        _name_unknown()
    layers, environment = _of(connection), config.of_texts(texts)
    until = float("inf")
    if connection is not None and not workers.is_driver():
        if layers.until is None or time.monotonic() >= layers.until:
            _read(connection, layers, patience_s)
        assert layers.until is not None  # noqa: S101 # it was just read
        until = layers.until
    found = _made_of(*_layered(layers.given, layers.job, environment))
    _known = _Known(connection, texts, until, found)
    return found


def _layered(
    given: Mapping[str, Any], job: Mapping[str, Any], environment: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """For each setting its value, and who says so."""
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for setting in SETTINGS:
        name = setting.name
        for source, said in (("init", given), ("job", job), (setting.variable, environment)):
            if name in said:
                values[name], sources[name] = said[name], source
                break
        else:
            values[name], sources[name] = setting.default, "default"
    return values, sources


def _made_of(values: Mapping[str, Any], sources: Mapping[str, str]) -> Settings:
    as_they_are = {name: values[name] for name in _AS_THEY_ARE}
    return Settings(
        **as_they_are,
        timeout_s=values["timeout"],
        durable_timeout_s=values["durable_timeout"],
        ttl_s=None if values["ttl"] == config.NO_LIMIT else values["ttl"],
        limits=config.with_limits(Limits(), {each.name: values[each.name] for each in SETTINGS if each.of_registry}),
        sources=MappingProxyType(dict(sources)),
    )


def _read(connection: Connection, layers: _Layers, patience_s: float) -> None:
    """Read what the driver of this process's job has said.

    Raises:
        RegistryUnavailableError: it isn't known, and the control service does not answer.
    """
    import json

    begun, is_first = time.monotonic(), layers.until is None
    wait_s = patience_s if is_first else _BRIEF_S
    until = Deadline(begun + wait_s, wait_s)
    try:
        if is_first:
            control.job_put(connection.job, _READ_KEY, b"1", until)
        begun = time.monotonic()
        text = control.job_get(connection.job, _JOBS_KEY, until)
    except RegistryUnavailableError:
        if is_first:
            raise
        layers.until = time.monotonic() + _AGAIN_S
        return
    # Another release of safe_refs may have written it, with settings that this one doesn't know.
    layers.job = {name: value for name, value in json.loads(text or b"{}").items() if name in BY_NAME}
    layers.until = begun + FRESH_S


def _name_unknown() -> None:
    for name in config.unknown_variables():
        import difflib  # seldom needed

        ours = {setting.name.upper(): setting.variable for setting in SETTINGS}  # what all begin with says nothing
        meant = difflib.get_close_matches(name.removeprefix("SAFE_REFS_"), ours, 1)
        warnings.warn(
            f"safe_refs has no setting for the environment variable {name}"
            + (f": is {ours[meant[0]]} meant?" if meant else "; docs/settings.md lists them"),
            stacklevel=callers.level(),
        )
