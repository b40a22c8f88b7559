"""Where in an object something stands, as a Python expression: `payload['batch'][3].ref`.

Worked out only when something was refused, so that pickling pays nothing for it. The search is for that very object, by identity, and
breadth first, so that a shortest expression is found. It sees what a pickler sees by itself: contents of dicts, lists, tuples, sets
and deques, attributes, closures and defaults. What an object's own `__reduce__` or `__getstate__` makes up can't be found.

What always holds: nothing is changed; attributes are read without calling users' code where that is possible, and where it is
called all the same, it may raise anything; cycles do no harm; the search ends after `_AT_MOST` objects (numbers, texts and others of
types that hold nothing don't count). The expression gives the very object that was refused, unless code of a user's class gives
another one.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import keyword
import math
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from .errors import UnsupportedReferenceError

_AT_MOST = 100_000  # objects looked into; about half a second
_LONGEST_KEY = 80  # characters: beyond that, a dict's value is named by its number

# One thing in another: what its `name` is made from, and the thing.
Item = tuple[Any, Any]


class _Way(NamedTuple):
    """One way into objects of some kind.

    Attributes:
        items: what is in such an object.
        name: an expression for one of these, from one for the object and what the item is called.
    """

    items: Callable[[Any], Iterable[Item]]
    name: Callable[[str, Any], str]


def explain(error: UnsupportedReferenceError, obj: Any, name: str = "payload") -> None:
    """Complete an error: where in `obj`, which goes by that name, the refused reference stands. Only once: then the error knows.

    Args:
        error: as a reducer raised it.
        obj: the object that was to be pickled.
        name: what the expression starts with.
    """
    if error.refused is not None:
        error.locate(name, find(obj, error.refused.reference, name))


def find(obj: Any, target: Any, name: str = "payload", at_most: int = _AT_MOST) -> str | None:
    """An expression for `target` in `obj`.

    Args:
        obj: where to look.
        target: what to look for, by identity.
        name: an expression for `obj`.
        at_most: how many objects to look into before giving up.

    Returns:
        One of the shortest, such as `payload['batch'][3].ref`; None if it isn't found.
    """
    if obj is target:
        return name
    ways = _Ways()
    seen = {id(obj): obj}  # kept, so that no other object gets the same id
    waiting = collections.deque([(name, obj)])
    while waiting:
        path, inside = waiting.popleft()
        for way in ways.of(inside):
            try:
                for key, item in way.items(inside):
                    if item is target:
                        return way.name(path, key)
                    if ways.of(item) and len(seen) < at_most and id(item) not in seen:
                        seen[id(item)] = item
                        waiting.append((way.name(path, key), item))
            except Exception:  # noqa: S112 # a user's class, or another thread that changes the object: look elsewhere
                continue
    return None


class _Ways:
    """The ways into objects, by their type; found out once for each type."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[type, list[_Way]]] = {}

    def of(self, obj: Any) -> list[_Way]:
        """The ways into an object; none where there is nothing in it."""
        kind = type(obj)
        known = self._known.get(id(kind))
        if known is None:
            ways: list[_Way] = []
            known = self._known[id(kind)] = kind, ways
            # A metaclass may raise what it likes. What was found before that is right.
            with contextlib.suppress(Exception):
                ways += _into_contents(kind)
                ways += _into_attributes(kind)
        return known[1]


def _into_contents(kind: type) -> Iterator[_Way]:
    bases = _bases(kind)
    for base, ways in _CONTAINERS.items():
        if base in bases:
            yield from ways
    if tuple in bases:
        fields = _fields(kind)
        yield (
            _Way(lambda obj: zip(fields, tuple.__iter__(obj), strict=True), _attribute)
            if fields
            else _Way(lambda obj: enumerate(tuple.__iter__(obj)), _index)
        )
    if getattr(sys.modules.get("numpy"), "ndarray", None) in bases:
        yield _Way(lambda array: enumerate(array.flat) if array.dtype.kind == "O" else (), "{}.flat[{}]".format)


def _into_attributes(kind: type) -> Iterator[_Way]:
    bases = _bases(kind)
    if kind in _NOTHING_IN_IT:
        return
    if type in bases:
        yield _Way(_of_class, _attribute)
        return
    if BaseException in bases:
        yield _Way(lambda error: [("args", error.args)], _attribute)
    if types.FunctionType in bases:
        yield _Way(_of_function, str.__add__)
    elif slots := _slots(bases):
        yield _Way(functools.partial(_of_slots, slots), _attribute)
    if any("__dict__" in vars(base) for base in bases):
        yield _Way(_of_vars, _variable)
    if not _is_found_by_name(kind):
        yield _Way(lambda obj: [(None, type(obj))], lambda path, _: f"type({path})")


def _bases(kind: type) -> tuple[type, ...]:
    # By the descriptor, as a metaclass may answer as it likes.
    bases: tuple[type, ...] = vars(type)["__mro__"].__get__(kind)
    return bases


def _in_class(bases: Iterable[type], name: str) -> Any:
    """What a class, or the first of its bases that has it, has under a name; None if nothing."""
    return next((vars(base)[name] for base in bases if name in vars(base)), None)


def _by_key(path: str, numbered: tuple[int, Any]) -> str:
    number, key = numbered
    return f"{path}[{key!r}]" if _is_literal(key) else f"list({path}.values())[{number}]"


def _is_literal(key: Any) -> bool:
    """Whether the text of a key, which is short, gives an equal key again."""
    kind = type(key)
    if kind is float:
        return math.isfinite(key)
    if kind is int:
        return bool(key.bit_length() <= _LONGEST_KEY)
    if kind is tuple:
        return len(key) <= 4 and all(type(each) is not tuple and _is_literal(each) for each in key)
    return key is None or kind is bool or ((kind is str or kind is bytes) and len(key) <= _LONGEST_KEY)


def _index(path: str, number: int) -> str:
    return f"{path}[{number}]"


def _numbered(path: str, number: int) -> str:
    return f"list({path})[{number}]"


def _fields(kind: type) -> tuple[str, ...]:
    """The fields of a named tuple, if they can be read by their names; () for other tuples."""
    bases = _bases(kind)
    fields = _in_class(bases, "_fields")
    if type(fields) is not tuple:
        return ()
    return fields if all(type(_in_class(bases, field)) is _FIELD for field in fields) else ()


def _of_vars(obj: Any) -> Iterator[Item]:
    bases = _bases(type(obj))
    for name, value in dict.items(object.__getattribute__(obj, "__dict__")):
        if type(name) is str:
            # A property (or any other descriptor that can be set) of that name answers before the object does.
            yield (name, hasattr(type(_in_class(bases, name)), "__set__")), value


def _variable(path: str, named: tuple[str, bool]) -> str:
    name, hidden = named
    return f"vars({path})[{name!r}]" if hidden else _attribute(path, name)


def _attribute(path: str, name: str) -> str:
    # Other names than these Python's parser might write in another way.
    plain = name.isidentifier() and name.isascii() and not keyword.iskeyword(name)
    return f"{path}.{name}" if plain else f"getattr({path}, {name!r})"


def _slots(bases: Iterable[type]) -> list[tuple[str, Any]]:
    """The slots of a class, as names and descriptors; those of C's own kinds (a partial's `func`) among them."""
    found: dict[str, Any] = {}
    for base in bases:
        for name, descriptor in vars(base).items():
            found.setdefault(name, descriptor)
    return [each for each in found.items() if type(each[1]) is types.MemberDescriptorType]


def _of_slots(slots: Iterable[tuple[str, Any]], obj: Any) -> Iterator[Item]:
    for name, descriptor in slots:
        with contextlib.suppress(AttributeError):  # nothing in it
            yield name, descriptor.__get__(obj)


def _of_class(kind: Any) -> Iterator[Item]:
    found: dict[str, Any] = {}
    for base in _bases(kind):
        if not _is_found_by_name(base):
            found = {**vars(base), **found}
    for name, value in found.items():
        # What binds, a property say, is something else when it is read.
        if type(name) is str and (type(value) is types.FunctionType or not hasattr(type(value), "__get__")):
            yield name, value


def _of_function(function: Any) -> Iterator[Item]:
    if _is_found_by_name(function):
        return
    for number, cell in enumerate(function.__closure__ or ()):
        with contextlib.suppress(ValueError):  # nothing in it yet
            yield f".__closure__[{number}].cell_contents", cell.cell_contents
    for number, value in enumerate(function.__defaults__ or ()):
        yield f".__defaults__[{number}]", value
    for name, value in (function.__kwdefaults__ or {}).items():
        yield f".__kwdefaults__[{name!r}]", value
    codes = [function.__code__]
    for code in codes:  # those of the functions inside are added while it runs
        for name in code.co_names:
            if name in function.__globals__:
                yield f".__globals__[{name!r}]", function.__globals__[name]
        codes += [each for each in code.co_consts if type(each) is types.CodeType]


def _is_found_by_name(thing: Any) -> bool:
    """Whether a pickle would name a class or function, rather than hold all that is in it, as it does for those of `__main__`."""
    module = thing.__module__
    if module == "builtins":
        return True
    if module == "__main__" or module not in sys.modules:
        return False
    found: Any = sys.modules[module]
    for name in thing.__qualname__.split("."):
        found = getattr(found, "__dict__", {}).get(name)
    return found is thing


# What pickles hold as it is, or by its name.
_NOTHING_IN_IT = {
    *(type(None), bool, int, float, complex, str, bytes, bytearray, memoryview, range, type(...), type(NotImplemented)),
    *(types.ModuleType, types.BuiltinFunctionType, types.CodeType),
}

# The kind of descriptor by which a named tuple's fields are read.
_FIELD = type(vars(collections.namedtuple("_Any", "field"))["field"])

_CONTAINERS: dict[type, list[_Way]] = {
    dict: [
        _Way(lambda obj: (((number, key), value) for number, (key, value) in enumerate(dict.items(obj))), _by_key),
        _Way(lambda obj: enumerate(dict.__iter__(obj)), _numbered),
    ],
    list: [_Way(lambda obj: enumerate(list.__iter__(obj)), _index)],
    collections.deque: [_Way(lambda obj: enumerate(collections.deque.__iter__(obj)), _index)],
    set: [_Way(lambda obj: enumerate(set.__iter__(obj)), _numbered)],
    frozenset: [_Way(lambda obj: enumerate(frozenset.__iter__(obj)), _numbered)],
}
