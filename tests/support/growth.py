"""Containers of the package in a process, found by looking: what grows with work that is over is a leak.

`sizes` starts at the modules of safe_refs and at given objects (an actor's instance), and follows attributes, elements, closures and
bound arguments. Of each container it gives the length, under the way by which it was found: those of all elements of one container
together. Beside them: threads by name, open files, living objects of each class of ours, and what Ray counts in this process.
"""

from __future__ import annotations

import functools
import gc
import queue
import re
import sys
import threading
import types
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from safe_refs._ray import native
from safe_refs._ray.cluster import NAMESPACE

from .waiting import comes

# What may grow up to a bound, whatever was in it before: a part of the way to it, and how many elements that are.
BOUNDS = {
    "tombstones._ended": 500,  # as `init` of the tests says
    "tombstones._lost": 500,
    "tombstones._revocable": 12_500,
    "objects of safe_refs.registry.tombstones.End": 500,
    "objects of safe_refs.registry.tombstones.Revocable": 12_500,
    "objects of safe_refs.registry.lease.Lease": 12_500,
    "objects of safe_refs.registry.records.": 12_500,  # the origins and terms of those
    "table._deadlines._heap": 64,
    "_unanchored._queue": 64,
    "_let_go._at": 10_000,
    "_handed_out._ids": 5_000,  # 64, and twice what leases held lately: those of `HandOvers.expire` live for five seconds
    "slots._drawn[]": 2 * 170,
    "lately._new": 4096,
    "lately._old": 4096,
    "objects of safe_refs.slots.Opened": 2 * 4096,
    "._recent": 4096,
    "objects of safe_refs.anchoring.reports.Recent": 4096 + 1,  # and one that stands for none
    "objects of safe_refs.envelope.LeaseAddress": 3 * 4096,  # of the two above
    "dependents._objects_of": 1000,
    "_owned._owned": 120,  # a hundred, and twice as many as live
    "objects of safe_refs.durability.nodes._Owned": 120,
}
_SLACK = {"threads": 2, "files": 8}
_SLACK_OF_OTHERS = 16
_OURS = ("safe_refs", "tests")
_CONTAINERS = (dict, list, set, frozenset, tuple, deque, weakref.WeakSet, weakref.WeakValueDictionary)


def sizes(*roots: object) -> dict[str, int]:
    """Lengths of the containers that can be reached in this process, and the other figures."""
    gc.collect()
    found: Counter[str] = Counter()
    for path, size in _lengths(roots):
        found[path] += size
    for each in gc.get_objects():
        if _module(type(each)).startswith("safe_refs"):
            found[f"objects of {type(each).__module__}.{type(each).__qualname__}"] += 1
    for thread in threading.enumerate():
        found["threads " + re.sub(r"[\d-]+$", "", thread.name)] += 1
    found["threads"] = threading.active_count()
    found["files"] = len(list(Path("/proc/self/fd").iterdir()))
    core = native.connected()
    found["references that Ray counts"] = 0 if core is None else len(core.get_all_reference_counts())
    return dict(found)


def ask_actors(registry: str) -> dict[str, Any]:
    """Ask the actors of a registry, and the relays, for their `sizes`: by name, what `answers` waits for."""
    names = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True) if each["namespace"] == NAMESPACE]
    ours = [name for name in names if name.startswith((f"registry:{registry}", "relay:", "exit_delay"))]
    return {name: ray.get_actor(name, namespace=NAMESPACE).__ray_call__.remote(sizes) for name in ours}


def answers(asked: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """What they have answered, by name."""
    found = {}
    for name, reply in asked.items():
        with suppress(ray.exceptions.RayActorError):  # a relay that nobody needed any more
            found[name] = ray.get(reply, timeout=60)
    return found


def _module(class_: type) -> str:
    found: object = class_.__module__  # a class may have anything there
    return found if isinstance(found, str) else ""


def _lengths(roots: tuple[object, ...]) -> Iterator[tuple[str, int]]:
    waiting: deque[tuple[str, Any]] = deque((type(root).__name__, root) for root in roots)
    for name, module in sorted(sys.modules.items()):
        if name.split(".")[0] == "safe_refs":
            for key, value in sorted(vars(module).items()):
                is_imported = isinstance(value, (type, types.FunctionType)) and value.__module__ != name
                if not (key.startswith("__") or is_imported):
                    waiting.append((f"{name}.{key}", value))
    seen: set[int] = set()
    while waiting:
        path, each = waiting.popleft()
        if id(each) in seen or each is None or isinstance(each, (str, bytes, int, float, types.ModuleType)):
            continue
        seen.add(id(each))
        if isinstance(each, _CONTAINERS) and not isinstance(each, tuple):
            yield path, len(each)
        elif isinstance(each, queue.SimpleQueue):
            yield path, each.qsize()
        elif isinstance(each, functools._lru_cache_wrapper):
            yield path, each.cache_info().currsize
        waiting.extend((path + step, inner) for step, inner in _inside(each))


def _inside(each: Any) -> list[tuple[str, Any]]:
    """What an object refers to that may be a container of ours, or lead to one."""
    if isinstance(each, (dict, weakref.WeakValueDictionary)):
        return [("[]", inner) for pair in list(each.items()) for inner in pair]
    if isinstance(each, tuple) and hasattr(each, "_fields"):
        return [(f".{name}", getattr(each, name)) for name in each._fields]
    if isinstance(each, _CONTAINERS):
        return [("[]", inner) for inner in list(each)]
    if isinstance(each, weakref.ref):
        return [("", each())]
    if isinstance(each, functools.partial):
        return [("()", inner) for inner in (each.func, *each.args, *each.keywords.values())]
    if isinstance(each, types.MethodType):
        return [("", each.__self__)]
    if isinstance(each, types.FunctionType):
        return [(".closure", _content(cell)) for cell in each.__closure__ or ()]
    is_class = isinstance(each, type)
    if not _module(each if is_class else type(each)).startswith(_OURS):
        return []
    names = dict(vars(each)) if hasattr(each, "__dict__") else {}
    for base in () if is_class else type(each).__mro__:
        slots = vars(base).get("__slots__", ())
        names |= {name: getattr(each, name, None) for name in ([slots] if isinstance(slots, str) else slots)}
    return [(f".{name}", value) for name, value in names.items() if not name.startswith("__")]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


def grown(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """What has grown beyond its bound, with its lengths."""
    found = {}
    for path, size in after.items():
        most = next((bound for end, bound in BOUNDS.items() if end in path), 0)
        figure = path.rpartition(": ")[2].split()[0]
        slack = _SLACK.get(figure, _SLACK_OF_OTHERS)
        if size > max(before.get(path, 0) + slack, most):
            found[path] = (before.get(path, 0), size)
    return found


def still_grown(
    before: Mapping[str, int], look: Callable[[], Mapping[str, int]], within_s: float = 20.0
) -> dict[str, tuple[int, int]]:
    """What is still grown when that time is over, in which threads finish what they have to do."""
    last: list[dict[str, tuple[int, int]]] = [{}]

    def is_flat() -> bool:
        last[0] = grown(before, look())
        return not last[0]

    comes(is_flat, within_s)
    return last[0]
