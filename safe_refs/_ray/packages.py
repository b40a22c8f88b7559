"""Packages that the workers of a node lack, so that actors of ours can't start there: noticed when one has died of it.

    an actor dies ── note_death ──┬── this process's environment brings packages: the next one gets them
                                  └── else its node is marked ── choose ──┬── the next node that isn't marked
                                                                          └── there is none, or enough were tried: an error says so

What always holds: within a few seconds at most `_MOST_TRIED` nodes are tried, however often somebody asks for the actor; a node where
the package is installed later is tried again after a minute, or at once if no other is left.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import RegistryUnavailableError
from . import control, environments, requests, workers

_MOST_TRIED = 3
_FRESH_S = 5.0  # so long nothing is started again where that has just failed
_GOOD_FOR_S = 60.0
_MOST_MARKS = 1000

# Private: Ray's error for an actor that could not start has Python's error in its text, seen since Ray 2.52. Without it, callers
# would wait for such an actor until their deadlines.
_NO_MODULE = re.compile(r"No module named '([\w.]+)'")
_OTHER_VERSION = re.compile(r"(?:cannot import name|Can't get attribute) '\w+' (?:from|on <module) '(safe_refs[\w.]*)'")
_IP = re.compile(r"\bip=([\w.:]+)")
_SAFE_REFS = __name__.partition(".")[0]


class _Mark(NamedTuple):
    """A node lacks a package: since when, and the error that says so."""

    at: float
    text: str


# By node id; "" for a node that could not be found out. Bound: _MOST_MARKS, then all are found again. No lock: each step is atomic.
_lacking: dict[str, _Mark] = {}


def missing(error: BaseException) -> str | None:
    """The package of which a worker says that it can't import it: safe_refs, or one that it needs; None if that wasn't it."""
    text = str(error)
    found = _OTHER_VERSION.findall(text) or _NO_MODULE.findall(text)
    if not found or found[-1].partition(".")[0] not in (_SAFE_REFS, "msgpack", "cloudpickle"):
        return None
    return str(found[-1])


def note_death(error: Exception) -> None:
    """An actor of ours has died. If it lacked a package, the next one gets those of this process's environment, or another node."""
    module = missing(error)
    if module is None:
        return
    actor: str = getattr(error, "actor_id", None) or ""
    if environments.bring_along(actor):
        return
    node, ip = _node_of(actor), _IP.findall(str(error))
    if len(_lacking) >= _MOST_MARKS:
        _lacking.clear()
    where = f"node {node[:8]}" if node else "a node"
    _lacking[node] = _Mark(time.monotonic(), _text(module, where + (f" ({ip[-1]})" if ip else "")))


def choose(living: Sequence[str], place: int) -> str:
    """The node where an actor of ours is to start.

    Args:
        living: ids of the living nodes.
        place: number of the one where it belongs, counted on from the first again if there are fewer.

    Raises:
        RegistryUnavailableError: a package is missing there, and on all others; or on those that were tried a moment ago.
    """
    now = time.monotonic()
    marks = {node: mark for node, mark in _lacking.copy().items() if now - mark.at < _GOOD_FOR_S}
    fresh = [mark for mark in marks.values() if now - mark.at < _FRESH_S]
    first = place % len(living)
    nodes = [*living[first:], *living[:first]]
    left = [node for node in nodes if node not in marks]
    if fresh and (not left or "" in marks or len(fresh) >= _MOST_TRIED):
        raise RegistryUnavailableError(fresh[-1].text)
    return (left or nodes)[0]


def complaint() -> str | None:
    """What `choose` would have said a moment ago of a package that is missing; None if none was."""
    now = time.monotonic()
    return next((mark.text for mark in _lacking.copy().values() if now - mark.at < _FRESH_S), None)


def missing_at_server(error: ModuleNotFoundError) -> RegistryUnavailableError:
    """The error for a Ray Client whose server can't import a package."""
    return RegistryUnavailableError(_text(missing(error) or str(error.name), "the node of this Ray Client's server"))


def _node_of(actor: str) -> str:
    """Id of the node where an actor could not start; empty if that can't be found out."""
    import ray

    try:
        row = control.actor_row(ray.ActorID.from_hex(actor), requests.soon()) if actor else None
    except RegistryUnavailableError:
        return ""
    return "" if row is None else workers.node_of(row.address)


def _text(module: str, where: str) -> str:
    if module == _SAFE_REFS:
        what = f"safe_refs is not installed on {where}, in the environment of its workers"
    elif module.startswith(_SAFE_REFS):
        what = f"another version of safe_refs is installed on {where}, in the environment of its workers ({module} differs)"
    else:
        what = f"{module}, which safe_refs needs, is not installed on {where}, in the environment of its workers"
    package: str = vars(sys.modules[_SAFE_REFS])["__file__"]
    here = "" if "-packages" in package else f" (this process has it from {Path(package).parent.parent})"
    return (
        f"{what}, so that the registry can't start there{here}: install it on every node, or have the job bring it along: "
        "ray.init(runtime_env={'py_modules': [safe_refs]})"
    )
