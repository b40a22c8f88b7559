"""Which class it is: how a process finds the class, function or module of a payload among those that it knows already.

    written: id in the tracker, digest of the script, name ──► opened: what has that id here
                                                                 │ else, in the very same script, what has that name
                                                                 │ else a new one, made and filled

cloudpickle has a tracker that gives ids to classes. There are two copies of cloudpickle, each with a tracker: PyPI's, and one inside
Ray, which tasks and actors use. A class that either of them knows is known here, and a new one is entered in both.

What always holds: opening a payload does not change a class that this process knows: it sets no attribute of it, and does not run
`__init_subclass__` for it. (cloudpickle resets all attributes each time, and gives methods another copy of their module's
dictionary.) There is one exception: an abstract class gets the classes registered with it that the payload names. No lock is held
here, not even cloudpickle's: code that runs in the middle of this, in the same thread, may pickle by value too.
"""

from __future__ import annotations

import abc
import functools
import hashlib
import importlib
import itertools
import os
import sys
import types
import typing
import uuid
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ._ray.native import is_imported

RAYS = "ray.cloudpickle.cloudpickle"
PYPIS = "cloudpickle.cloudpickle"

# What multiprocessing calls the main script in a process that it has spawned: there, and nowhere else, it can be imported.
SPAWNED = "__mp_main__"
_MAINS = ("__main__", SPAWNED)

# How `known_or_made` is to make a class: as cloudpickle makes classes, or enumerations. Parts of the payload format.
CLASS, ENUM = 0, 1
MEMBERS = "_safe_refs_members"  # the key of attributes of an enumeration's members, by their names

# Made of a name, and `NewType` of another type too. Python 3.10 has no `TypeVarTuple`.
NAMED_KINDS: tuple[type, ...] = tuple(
    getattr(typing, name) for name in ("NewType", "ParamSpec", "TypeVarTuple") if hasattr(typing, name)
)

# What else than a class may stand for what was written, if it is found by its name.
_FOUND_BY_NAME = (types.FunctionType, typing.TypeVar, *NAMED_KINDS, type(functools.lru_cache(lambda: None)))

# The code of the functions that `singledispatch` makes.
_dispatching: Any = functools.singledispatch(lambda _: None)
DISPATCHING = _dispatching.__code__

# What has been made here and not been filled yet: only that is filled. Weak. Bound: what is being opened just now, or was when its
# opening failed. No lock: each step is one for the interpreter, and to fill something twice at once does no harm.
_unfilled: weakref.WeakSet[Any] = weakref.WeakSet()

# What has been made, by its id, until the trackers have it: of several threads, all take what the first has made. Bound: one for each
# thread. No lock: `dict.setdefault` is one step for the interpreter; that of the trackers isn't.
_making: dict[str, Any] = {}

_process = os.urandom(6)  # tells what this process has written

# The modules that have been the main one here, numbered: where a script runs again in the same process, as Streamlit has it do, it
# gets a new one each time. Bound: those that live.
_runs: weakref.WeakKeyDictionary[types.ModuleType, bytes] = weakref.WeakKeyDictionary()
_numbers = itertools.count()
_last_run: tuple[Callable[[], Any], bytes] = (lambda: None, b"")  # what `_run_of` has found last, replaced as a whole
_loaded: tuple[Any, Any, Sequence[Any]] = (None, None, ())  # what `copies` has found last, likewise


def _begin_anew() -> None:
    """A forked child gives ids of its own to what has none yet: to its parent and to other children it is another process."""
    global _process, _last_run
    _process, _last_run = os.urandom(6), (lambda: None, b"")


os.register_at_fork(after_in_child=_begin_anew)


def _run_of(main: types.ModuleType) -> bytes:
    """What tells a run of a script in this process from all others, in other processes as well."""
    global _last_run
    known, mark = _last_run
    if known() is not main:
        mark = _process + (_runs.get(main) or _runs.setdefault(main, (next(_numbers) % 2**16).to_bytes(2, "big")))
        _last_run = weakref.ref(main), mark
    return mark


def copies() -> Sequence[Any]:
    """The copies of cloudpickle that are loaded here, Ray's first."""
    global _loaded
    rays, pypis = sys.modules.get(RAYS), sys.modules.get(PYPIS)
    known = _loaded
    if known[0] is rays and known[1] is pypis:
        return known[2]
    # Another thread may be in the middle of importing one.
    found = [each for each in (rays, pypis) if hasattr(each, "CloudPickler")]
    if len(found) == (rays is not None) + (pypis is not None):
        _loaded = rays, pypis, found
    return found


def cloudpickle_here() -> Any:
    """The copy of cloudpickle to build on."""
    name = RAYS if is_imported() else PYPIS
    found = sys.modules.get(name)
    return found if hasattr(found, "CloudPickler") else importlib.import_module(name)


def _known(id_: str) -> Any:
    """What any copy of cloudpickle knows by that id; None if nothing."""
    known = (each._DYNAMIC_CLASS_TRACKER_BY_ID.get(id_) for each in copies())
    return next((each for each in known if each is not None), None)


def tracked(obj: Any) -> str:
    """The id by which this process knows a class, a module, a type variable or a function; a new one, if it has none."""
    loaded = copies()
    first, *others = [each._DYNAMIC_CLASS_TRACKER_BY_CLASS for each in loaded]
    known: str | None = first.get(obj)
    if known is not None and loaded[0]._DYNAMIC_CLASS_TRACKER_BY_ID.get(known) is obj:
        for each in others:
            if obj not in each:
                break
        else:
            return known  # nearly always
    if known is None or any(obj not in each for each in others):
        id_ = known or next((each[obj] for each in others if obj in each), None) or uuid.uuid4().hex
        _track(id_, obj)
        known = str(first.get(obj, id_))  # another thread may have given it one
    if _known(known) is not obj:  # two classes may be equal, by their metaclass: this one gets another id each time
        known = uuid.uuid4().hex
        _track(known, obj)
    return known


def function_id(func: Any) -> bytes:
    """The id by which the process that wrote a function finds it again. Other processes do not go by it."""
    return bytes.fromhex(tracked(func))


def _track(id_: str, obj: Any) -> None:
    """Have all copies know it by that id, too."""
    for each in copies():
        each._DYNAMIC_CLASS_TRACKER_BY_CLASS.setdefault(obj, id_)
        each._DYNAMIC_CLASS_TRACKER_BY_ID.setdefault(id_, obj)


def home_of(obj: Any, name: str) -> bytes | None:
    """Digest of the script, and this process's mark; None if it is not found there by that name, or the script has no file."""
    module = getattr(obj, "__module__", None)
    main = sys.modules.get(module) if module in _MAINS and "<" not in name else None  # a lambda's, or a local one's
    if main is None or _found(main, name) is not obj:
        return None
    digest = _digest(getattr(main, "__file__", None))
    return digest and digest + _run_of(main)


def _found(module: Any, name: str) -> Any:
    """What is found in a module by a dotted name; None if nothing is."""
    first, *rest = name.split(".")
    found = vars(module).get(first)  # a module takes long to say that it lacks an attribute
    for part in rest:
        found = getattr(found, part, None)
    return found


@functools.lru_cache(maxsize=4)  # a process has one script, or two
def _digest(path: str | None) -> bytes | None:
    """The digest of a script; None if it can't be read (again), as in a notebook, or from a pipe."""
    try:
        found = Path(path or "")
        if not found.is_file():
            return None
        text = found.read_bytes()
    except (OSError, TypeError, ValueError):
        return None
    return hashlib.blake2b(text, digest_size=16).digest() if text else None


_digest(getattr(sys.modules.get("__main__"), "__file__", None))  # before somebody edits it


# --- what payloads call when they are opened ---


def known_or_made(
    tracker_id: str | None, home: bytes | None, name: str, make: Callable[..., Any] | int, args: tuple[Any, ...]
) -> Any:
    """The class, function or module of a payload: the one that this process knows, or a new one, still empty.

    Args:
        tracker_id: the id of a class, type variable or module; None for a function.
        home: the digest of the script in which it is found by its name, the mark of the process that wrote it, and for a function its
            id; None if it isn't found there.
        name: that name.
        make: makes a new one from `args`; or CLASS or ENUM.
        args: see `make`.
    """
    main = sys.modules.get("__main__")
    is_here, by_name = home is not None and home[16:22] == _process, None
    is_another_run = home is not None and main is not None and home[16:24] != _run_of(main)
    if home is not None and is_another_run and home[:16] == _digest(getattr(main, "__file__", None)):
        # Another run of the same script, or a process that it has spawned, has written this. Plain pickle goes by the name, too.
        by_name = _found(main, name)
        if not isinstance(by_name, type if make in (CLASS, ENUM) else _FOUND_BY_NAME):
            by_name = None
    if by_name is not None and is_here:
        return by_name  # what an earlier run here knows by that id is another class
    found = None if tracker_id is None else _known(tracker_id)
    if found is None and home is not None:
        found = _known(home[24:].hex())  # a function that this process has written, or its parent before it forked
    if found is None:
        found = by_name
    if found is None:
        base = cloudpickle_here()  # so that there is a tracker
        makers: dict[Any, Any] = {CLASS: base._make_skeleton_class, ENUM: base._make_skeleton_enum}
        if make == CLASS:
            args = (*args[:3], _fitting(args[2], args[3]), *args[4:])
        found = makers.get(make, make)(*args)
        _unfilled.add(found)  # before anybody else may find it
    if tracker_id is not None:
        cloudpickle_here()
        found = _making.setdefault(tracker_id, found)
        try:
            _track(tracker_id, found)
        finally:
            _making.pop(tracker_id, None)
        found = _known(tracker_id)
    return found


def _fitting(bases: tuple[Any, ...], given: dict[str, Any]) -> dict[str, Any]:
    """The namespace of a new class, without the slots `__dict__` and `__weakref__` if a base class provides them here.

    The base may have come by `ray.cloudpickle`, which drops `__slots__`.
    """
    names = given.get("__slots__")
    if not names:
        return given
    real = [base for base in types.resolve_bases(bases) if isinstance(base, type)]
    has = {"__dict__": "__dictoffset__", "__weakref__": "__weakrefoffset__"}
    kept = [
        name
        for name in ([names] if isinstance(names, str) else names)
        if not (name in has and any(getattr(base, has[name]) for base in real))
    ]
    return given | {"__slots__": tuple(kept)}


def fill_if_made(obj: Any, state: Any) -> None:
    """Fill a class, function or module that has been made from a payload; leave all others as they are."""
    if obj not in _unfilled:
        # But for this: a class that is new here may have been registered with an abstract class that is known here.
        for subclass in state[0].get("_abc_impl", ()) if isinstance(obj, abc.ABCMeta) else ():
            if not issubclass(subclass, obj):
                abc.ABCMeta.register(obj, subclass)
        return
    if isinstance(obj, types.ModuleType):
        vars(obj).update(state, __builtins__=__builtins__)
    elif not isinstance(obj, types.FunctionType):
        for name, attributes in state[0].pop(MEMBERS, {}).items():
            vars(obj.__members__[name]).update(attributes)
        cloudpickle_here()._class_setstate(obj, state)
    elif obj.__code__ is DISPATCHING:
        register: Any = obj.register  # type: ignore[attr-defined] # it is a function with attributes
        for kind, func in state.items():
            register(kind, func)
    else:
        cloudpickle_here()._function_setstate(obj, state)
    _unfilled.discard(obj)


# Pickles name these functions, so their addresses are a part of the payload format: they stay as they are (docs/format.md).
known_or_made.__module__ = fill_if_made.__module__ = "safe_refs"
known_or_made.__qualname__ = known_or_made.__name__ = "_known_or_made"
fill_if_made.__qualname__ = fill_if_made.__name__ = "_fill_if_made"
