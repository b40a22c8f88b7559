"""Pickling by value, built on cloudpickle: for classes, functions and modules that another process can't import.

There are two copies of cloudpickle: PyPI's, and one inside Ray. In a process that has Ray, this module builds on Ray's: users of
Ray fill its list of modules to pickle by value, and its table of serializers. Without Ray it builds on PyPI's. PyPI's list of
modules counts in either case. Beyond what cloudpickle can do, this pickles `singledispatch` and `lru_cache` functions,
`cached_property`, real `__slots__`, all kinds of type variables and new types of a script, and aliases and attributes of the members
of enumerations.

What always holds: the ids of classes are those that Ray's tasks and actors go by (see `identity`). No lock is held here, not even
cloudpickle's: code that runs in the middle of this, in the same thread, may pickle by value too.
"""

from __future__ import annotations

import copyreg
import dataclasses
import enum
import functools
import pickle
import sys
import types
import typing
from collections.abc import Callable
from typing import Any, ClassVar

from . import slots
from .identity import (
    CLASS,
    DISPATCHING,
    ENUM,
    MEMBERS,
    NAMED_KINDS,
    PYPIS,
    RAYS,
    SPAWNED,
    cloudpickle_here,
    copies,
    fill_if_made,
    function_id,
    home_of,
    known_or_made,
    tracked,
)

_CPickler = pickle.Pickler  # as it is now: somebody may set the module's own to ours

# Packages whose reducers in Ray's table are no user's.
_OWN = {"ray", "cloudpickle", "safe_refs"}

# What the members of all enumerations have; the rest they have got from the class's own `__new__` or `__init__`.
_OF_EVERY_MEMBER = {"_value_", "_name_", "__objclass__", "_sort_order_"}

_LRU_CACHE: Any = type(functools.lru_cache(lambda: None))

# What users have registered with the copies that are loaded: the lists of modules to pickle by value; Ray's table of reducers, and
# how many it had when none was a user's. Each is replaced as a whole, so that threads may look at any time.
value_modules: tuple[set[str], ...] = ()
rays_table: dict[type, Any] = {}
rays_own = 0


def _note_copy(name: str) -> Callable[[], bool]:
    def note() -> bool:
        global value_modules, rays_table
        copy = sys.modules.get(name)
        if not hasattr(copy, "CloudPickler"):
            return False  # another thread is in the middle of importing it
        value_modules = (*value_modules, copy._PICKLE_BY_VALUE_MODULES)  # type: ignore[union-attr] # a module has anything
        if name == RAYS:
            rays_table = copy.CloudPickler._dispatch_table  # type: ignore[union-attr]
        return True

    return note


slots.waiting = (*slots.waiting, (RAYS, _note_copy(RAYS)), (PYPIS, _note_copy(PYPIS)))


def is_asked_for() -> bool:
    """Whether a user wants something pickled otherwise than plain pickle does it: modules by value, or by a serializer of Ray's.

    `slots.register` looks up the lists and the table that this goes by.
    """
    return any(value_modules) or (len(rays_table) != rays_own and has_serializers())


def has_serializers() -> bool:
    """Whether somebody other than Ray has registered a serializer (`ray.util.register_serializer`)."""
    global rays_own
    reducers = list(rays_table.values())
    for reduce in reversed(reducers):  # users' come last
        cells = [cell.cell_contents for cell in getattr(reduce, "__closure__", None) or ()]
        for each in (reduce, *filter(callable, cells)):
            if str(getattr(each, "__module__", "")).split(".")[0] not in _OWN:
                return True
    rays_own = len(reducers)
    return False


def pickler(
    sink: Any,
    protocol: int,
    fix_imports: bool,
    buffer_callback: Callable[[pickle.PickleBuffer], Any] | None,
    base: type | None = None,
) -> pickle.Pickler:
    """A pickler that pickles by value what can't be imported elsewhere.

    Args:
        sink: where to write.
        protocol: as for `pickle.Pickler`, like `fix_imports` and `buffer_callback`.
        fix_imports: see `protocol`.
        buffer_callback: see `protocol`.
        base: a subclass of what `pickler_class` returns.
    """
    made: pickle.Pickler = (base or pickler_class())(sink, protocol, buffer_callback=buffer_callback)
    if not fix_imports:
        # cloudpickle's constructor doesn't pass it on; the C pickler's own may be called again.
        _CPickler.__init__(made, sink, protocol, fix_imports=False, buffer_callback=buffer_callback)
    return made


def pickler_class() -> Any:
    """The class of such picklers, built on the copy of cloudpickle that this process is to use."""
    return _pickler_class(cloudpickle_here())


class _Reducers(dict[type, Any]):
    """The dispatch table of such picklers: ours, then those of the copy of cloudpickle, with the user's, then everybody's.

    It does what a `ChainMap` of them would, but quicker.
    """

    def __init__(self, base: Any) -> None:
        super().__init__(
            {
                typing.TypeVar: functools.partial(_reduce_typevar, base),
                types.ModuleType: functools.partial(_reduce_module, base),
                functools.cached_property: _reduce_cached_property,
                _LRU_CACHE: functools.partial(_reduce_lru_cache, base),
                # There is one, and what fields have is compared with it.
                type(dataclasses.MISSING): lambda _: (getattr, (dataclasses, "MISSING")),
            }
        )
        self.update(dict.fromkeys(NAMED_KINDS, functools.partial(_reduce_named, base)))
        self._base = base.CloudPickler._dispatch_table.get

    def __missing__(self, kind: type) -> Any:
        # Ray's table has reducers for references as well, which pin what they pass on: ours come first.
        reduce = slots.reducers.get(kind) or self._base(kind) or copyreg.dispatch_table.get(kind)
        if reduce is None:
            raise KeyError(kind)
        return reduce


@functools.lru_cache(maxsize=2)  # there are two copies
def _pickler_class(base: Any) -> Any:
    is_by_reference, reduce_function = base._should_pickle_by_reference, base.CloudPickler._dynamic_function_reduce

    class ByValue(base.CloudPickler):  # type: ignore[misc] # cloudpickle is untyped
        dispatch_table: ClassVar[Any] = _Reducers(base)

        def reducer_override(self, obj: Any) -> Any:
            # As `_goes_by_name`, without a call for nearly every class and function.
            kind = type(obj)
            if kind is types.FunctionType:
                if is_by_reference(obj) and (
                    (not any(value_modules) and obj.__module__ != SPAWNED) or _goes_by_name(base, obj)
                ):
                    return NotImplemented
                if "<" in obj.__qualname__ and obj.__code__ is not DISPATCHING:
                    return reduce_function(self, obj)  # a lambda, or a local function: nobody finds it by its name
                return self._dynamic_function_reduce(obj)
            if not issubclass(kind, type):
                return NotImplemented
            if obj in base._BUILTIN_TYPE_NAMES:
                return super().reducer_override(obj)
            if is_by_reference(obj) and (
                (not any(value_modules) and obj.__module__ != SPAWNED) or _goes_by_name(base, obj)
            ):
                return NotImplemented
            return _reduce_class(base, obj)

        def _dynamic_function_reduce(self, func: Any) -> Any:
            name = func.__qualname__
            home = home_of(func, name)
            if func.__code__ is DISPATCHING:
                # Its cache can't be pickled. A new one is made from the default function, and the others are registered with it.
                others = dict(func.registry)
                make, args, state = functools.singledispatch, (others.pop(object),), others
            else:
                reduced = super()._dynamic_function_reduce(func)
                if home is None:
                    return reduced
                make, args, state, *_ = reduced
            return (
                known_or_made,
                (None, home and home + function_id(func), name, make, args),
                state,
                None,
                None,
                fill_if_made,
            )

        def dump(self, obj: Any) -> None:
            _CPickler.dump(self, obj)  # cloudpickle's own only gives another error when recursion is too deep

    return ByValue


def _goes_by_name(base: Any, obj: Any) -> bool:
    """Whether a class or function is pickled by its name, as it can be imported elsewhere."""
    module = getattr(obj, "__module__", None)
    return bool(base._should_pickle_by_reference(obj)) and not _is_of_value_module(module, base)


def _is_of_value_module(name: Any, base: Any) -> bool:
    """Whether a module is pickled by value for a reason that `base` doesn't know: its name, or the other copy's list."""
    if name == SPAWNED:
        return True
    module = sys.modules.get(name) if any(value_modules) else None
    return isinstance(module, types.ModuleType) and any(
        each._is_registered_pickle_by_value(module)
        for each in copies()
        if each is not base and each._PICKLE_BY_VALUE_MODULES
    )


def _reduce_class(base: Any, cls: type) -> Any:
    # cloudpickle's own makers get no tracker id: they would look it up under a lock.
    args: tuple[Any, ...]
    if issubclass(cls, enum.Enum):
        make, state = ENUM, base._enum_getstate(cls)
        # With aliases; a class of flags that keeps any bit, where others of its kind don't, could not be made with them.
        is_usual = getattr(cls, "_boundary_", None) is getattr(cls.__bases__[-1], "_boundary_", None)
        named: dict[str, Any] = dict(cls.__members__) if is_usual else {member.name: member for member in cls}
        members = {name: member._value_ for name, member in named.items()}
        for name in cls.__members__:
            state[0].pop(name, None)
        given_by_init = {
            name: {key: value for key, value in vars(member).items() if key not in _OF_EVERY_MEMBER}
            for name, member in named.items()
        }
        if any(given_by_init.values()):
            state[0][MEMBERS] = given_by_init
        args = (cls.__bases__, cls.__name__, cls.__qualname__, members, cls.__module__, None, None)
    else:
        make, state = CLASS, base._class_getstate(cls)
        own = vars(cls)
        given = {"__module__": own["__module__"]} if "__module__" in own else {}
        if isinstance(own.get("__dict__"), property):
            given["__dict__"] = own["__dict__"]
        names = own.get("__slots__")
        if names is not None and not (issubclass(cls, tuple) and hasattr(cls, "_fields")):  # a NamedTuple has its own
            # cloudpickle makes classes without slots, and fails where a slot's name is private.
            given["__slots__"] = names
            for name in [names] if isinstance(names, str) else names:
                private = name.startswith("__") and not name.endswith("__")
                state[0].pop(f"_{cls.__name__.lstrip('_')}{name}" if private else name, None)
        args = (type(cls), cls.__name__, base._get_bases(cls), given, None, None)
    home = home_of(cls, cls.__qualname__)
    # A class that was made from a payload may have another qualified name, and all processes are to write the same bytes of a class.
    name = cls.__qualname__ if home else ""
    return known_or_made, (tracked(cls), home, name, make, args), state, None, None, fill_if_made


def _place(base: Any, obj: Any, name: str) -> Any:
    """Module and name by which something that is neither a class nor a function is pickled; None if it has to be by value."""
    place = base._lookup_module_and_qualname(obj, name=name)
    is_by_name = place and not base._is_registered_pickle_by_value(place[0])
    return place if is_by_name and not _is_of_value_module(place[0].__name__, base) else None


def _reduce_typevar(base: Any, var: Any) -> Any:
    name = var.__name__
    args = (name, var.__bound__, var.__constraints__, var.__covariant__, var.__contravariant__, None)
    if place := _place(base, var, name):
        return getattr, place
    return known_or_made, (tracked(var), home_of(var, name), name, base._make_typevar, args)


def _reduce_named(base: Any, var: Any) -> Any:
    name = var.__name__
    if place := _place(base, var, name):
        return getattr, place
    args = (name, var.__supertype__) if type(var) is typing.NewType else (name,)
    state: Any = {"__module__": var.__module__}, {}
    return known_or_made, (tracked(var), home_of(var, name), name, type(var), args), state, None, None, fill_if_made


def _reduce_lru_cache(base: Any, cached: Any) -> Any:
    name = cached.__qualname__
    if _place(base, cached, name):
        return name
    make = functools.lru_cache(**cached.cache_parameters())
    home = home_of(cached, name)
    return known_or_made, (None, home and home + function_id(cached), name, make, (cached.__wrapped__,))


def _reduce_cached_property(prop: functools.cached_property[Any]) -> Any:
    # Up to Python 3.11 it holds a lock.
    return functools.cached_property, (prop.func,), {"attrname": prop.attrname, "__doc__": prop.__doc__}


def _reduce_module(base: Any, module: types.ModuleType) -> Any:
    if base._should_pickle_by_reference(module) and not _is_of_value_module(module.__name__, base):
        return base.subimport, (module.__name__,)
    state = {name: value for name, value in vars(module).items() if name != "__builtins__"}
    make = types.ModuleType, (module.__name__,)
    return known_or_made, (tracked(module), None, module.__name__, *make), state, None, None, fill_if_made
