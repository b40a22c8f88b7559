"""Calls that nobody should make, for every method of every actor of ours: made from what the methods say that they take.

Each call is right in most of its parts and wrong in one at least, as only such a call gets far. What a method takes is found out
here, so that a new one is called, too.
"""

from __future__ import annotations

import collections.abc
import enum
import importlib
import inspect
import math
import random
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

import msgpack
import ray

from safe_refs.bounds import IsAddress, IsReference, Length, OneOf, Range, Reference
from safe_refs.registry.hooks import ShardPart
from safe_refs.registry.wire import NOT_TEXT, PACKED
from tests.support.house import modules

# Calls that are right for everybody's leases, as whoever runs a cluster makes them: what is wrong in them is never right by chance.
OBEYED = {"set_limits", "hold_off", "close", "release_where"}  # `close` while somebody is shutting down
# Their methods run in the actor, if anything asks them there.
_HOSTILE = {
    name: lambda *_: 1 / 0
    for name in ("__eq__", "__hash__", "__len__", "__lt__", "__bool__", "__iter__", "__index__", "__str__", "__repr__")
}


def hostile() -> Any:
    """An object of which nothing can be asked. Its class goes along with it."""
    return type("Hostile\x1b[31m\n" + "x" * 2000, (), dict(_HOSTILE, __module__="__main__"))()


def classes() -> dict[str, type]:
    """The classes of our actors, and the parts of a shard, by their names: all that have methods which others call."""
    found = {}
    for name in modules():
        if name.startswith(("demo", "__main__")):
            continue
        module = importlib.import_module("safe_refs" if name == "__init__" else f"safe_refs.{name}")
        for each in vars(module).values():
            if inspect.isclass(each) and each.__module__ == module.__name__ and takes_calls(each):
                found[each.__name__] = each
    return found


def takes_calls(class_: type) -> bool:
    """Whether others call some of its methods."""
    return any(getattr(each, "is_checked", False) for each in vars(class_).values())


def methods(class_: type) -> dict[str, Any]:
    """Its methods, also those that are nobody else's to call; but not Python's, and not Ray's."""
    found = inspect.getmembers(class_, lambda each: inspect.isfunction(each) or type(each).__name__ == "_Inner")
    return {name: getattr(each, "_function", each) for name, each in found if not name.startswith("__")}


class Calls:
    """Draws calls.

    Args:
        seed: the same one draws the same calls.
        refs: real references, of which some are in the calls.
    """

    def __init__(self, seed: int, refs: list[Any]) -> None:
        self.rng = random.Random(seed)  # noqa: S311 # no secrets
        self.refs = refs
        self._may_be_right = True
        self._parts = {name: each for name, each in classes().items() if issubclass(each, ShardPart)}

    def of(self, class_: type) -> Iterator[tuple[str, list[Any]]]:
        """Calls of an actor of this class, without end: the method's name, and the arguments."""
        offered = methods(class_)
        names = [name for name, each in offered.items() if getattr(each, "is_checked", False)]
        while True:
            name = self.rng.choice(names)
            yield name, self._of_part() if name == "part" and self.rng.random() < 0.95 else self._wrong(offered[name])

    def _of_part(self) -> list[Any]:
        class_ = self.rng.choice(list(self._parts.values()))
        name, method = self.rng.choice(list(methods(class_).items()))
        return [f"{class_.__name__}.{name}", *self._wrong(method)]

    def _wrong(self, method: Any) -> list[Any]:
        said = {name: each for name, each in method.__annotations__.items() if name != "return"}
        try:
            hints = typing.get_type_hints(
                types.SimpleNamespace(__annotations__=said),
                inspect.unwrap(method).__globals__,
                {"Ref": Reference},
                include_extras=True,
            )
        except (NameError, TypeError):  # not one that others call, and not all of its types are there
            hints = dict.fromkeys(said, Any)
        self._may_be_right = method.__name__ not in OBEYED
        args = [self._right(hint) for hint in hints.values()]
        if not args or self.rng.random() < 0.05:
            args.append(self._garbage())
        place = self.rng.randrange(len(args))
        args[place] = self._spoiled(args[place])
        return [self._packed(each) for each in args]

    def _packed(self, value: Any) -> Any:
        if type(value) in PACKED and self.rng.random() < 0.7:
            try:
                return msgpack.packb(value, unicode_errors=NOT_TEXT)
            except Exception:  # what can't travel so travels otherwise
                return value
        return value

    def _right(self, kind: Any) -> Any:
        """A value such as the annotation asks for."""
        rng, origin, args = self.rng, typing.get_origin(kind), typing.get_args(kind)
        if origin is Annotated:
            return self._bounded(args[0], {type(each): each for each in args[1:]})
        if origin in (typing.Union, types.UnionType):
            return self._right(rng.choice(args))
        if origin is tuple and args[-1:] != (...,):
            return tuple(map(self._right, args))
        if origin is collections.abc.Mapping:
            return {self._right(args[0]): self._right(args[1]) for _ in range(rng.randrange(3))}
        if origin in (list, tuple, frozenset, collections.abc.Sequence):
            made = [self._right(args[0]) for _ in range(rng.randrange(4))]
            return made if origin in (list, collections.abc.Sequence) else origin(made)
        if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
            hints = typing.get_type_hints(kind, include_extras=True)
            return kind(*map(self._right, hints.values()))
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return rng.choice(list(kind))
        return self._bounded(kind, {}) if kind in (int, float, str, bytes, bool, type(None)) else self._garbage()

    def _bounded(self, kind: type, bounds: dict[type, Any]) -> Any:
        rng = self.rng
        if IsReference in bounds:
            return rng.choice(self.refs)
        if OneOf in bounds:
            return rng.choice(sorted(bounds[OneOf].texts))
        if kind in (int, float):
            low, high = bounds.get(Range, Range(-5, 5))
            number = rng.choice([max(low, -5), min(high, 5), rng.uniform(max(low, -1000), min(high, 1000))])
            return int(number) if kind is int else float(number)
        if kind in (str, bytes):
            least, most = (0, 3) if IsAddress in bounds else bounds.get(Length, Length(0, 9))
            data = rng.randbytes(rng.randint(least, min(most, least + 20)))
            return data if kind is bytes else data.hex()[: len(data)]
        return rng.random() < 0.5 if kind is bool else None

    def _spoiled(self, value: Any) -> Any:
        """The same with something wrong somewhere in it."""
        rng = self.rng
        if rng.random() < 0.2:
            return self._garbage()
        if isinstance(value, dict) and value:
            key = rng.choice(list(value))
            return {**value, key: self._spoiled(value[key])}
        if isinstance(value, (list, tuple)) and value:
            items = list(value)
            place = rng.randrange(len(items))
            items[place] = self._spoiled(items[place])
            if hasattr(value, "_fields"):
                return type(value)(*items)
            return items if isinstance(value, list) else tuple(items)
        if type(value) is bytes and rng.random() < 0.3:
            return value + b"\0"
        return self._garbage()

    def _garbage(self) -> Any:
        rng = self.rng
        ref = rng.choice(self.refs)
        deep: Any = []
        for _ in range(50):
            deep = [deep]
        if not self._may_be_right:
            return rng.choice([math.nan, b"5", deep, hostile(), -(2**70), object()])
        return rng.choice(
            [
                *(
                    None,
                    None,
                    True,
                    -1,
                    0,
                    2**31,
                    2**63,
                    -(2**200),
                    10**400,
                    1.5,
                    -0.0,
                    math.nan,
                    math.nan,
                    math.inf,
                    -math.inf,
                    1e300,
                ),
                *(
                    "",
                    "a text id of 16 ",
                    "\x1b[2J\r\n\0",
                    "\ud800",
                    "x" * 70_000,
                    b"",
                    b"\0" * 16,
                    b"\xff" * 28,
                    b"x" * 70_000,
                ),
                *(
                    [],
                    (),
                    {},
                    set(),
                    frozenset(),
                    [None],
                    (None,) * 4,
                    {None: None},
                    {"durability": 5},
                    {"durability": (1,) * 3},
                    deep,
                ),
                *([ref], {"durability": [ref]}, [ref, None], ray.ObjectRef.nil()),
                *(
                    ValueError("x"),
                    int,
                    print,
                    range(3),
                    1j,
                    object(),
                    bytearray(16),
                    memoryview(b"16 bytes of memo").tobytes(),
                ),
                *(hostile(), [hostile()], {"durability": hostile()}),
            ]
        )
