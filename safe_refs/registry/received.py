"""What an actor of ours receives: every argument of every call is checked by its type and its bounds before anything is done with it.

The caller is any process of the cluster: one with another release, with a fault of its own, or one that tries what happens. What a
method is annotated with is what it accepts; what a field may have is said where it is annotated, by the types of `bounds`.

What always holds: a call that is refused raises `TypeError` or `ValueError` in its caller, with the name of what was wrong, and has
changed nothing. No value is in that error, and no code of the caller's runs here for a check: types are compared by identity.

Not guarded against: `__ray_call__`, by which Ray itself lets every process of a cluster run code in every actor.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar, cast

from .._ray import actors, workers
from ..bounds import IsAddress, IsReference, Length, OneOf, Range, Reference
from ..checks import shown

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

Check = Callable[[Any], None]

MOST_ITEMS = 2**20  # of a list, a tuple, a set or a mapping
# The bounds of a type that says no others.
PLAIN: Mapping[type, Length | Range] = {
    bytes: Length(0, 2**16),
    str: Length(0, 2**16),
    int: Range(-(2**63), 2**63 - 1),
    float: Range(-1e18, 1e18),
}
_LISTS = (list, tuple)
_MAY_BE: Mapping[Any, tuple[type, ...]] = {
    collections.abc.Sequence: _LISTS,
    collections.abc.Mapping: (dict,),
    list: (list,),
    tuple: (tuple,),
    frozenset: (frozenset,),
}


class _WrongError(Exception):
    """What is wrong with a value, and where in the argument it stands."""

    def __init__(self, kind: type[Exception], text: str) -> None:
        super().__init__()
        self.kind, self.text, self.place = kind, text, ""


def checked(method: F) -> F:
    """A method of an actor, or of a part of one, that other processes call: it gets nothing that its annotations don't allow.

    If an argument's class has an `unpack`, the argument may be bytes, too, and is unpacked here.
    """
    # Looked at now: Ray adds an argument of its own to the signature that it finds, for its tracing, and takes it off each call.
    plan = functools.cache(functools.partial(_Plan, method, inspect.signature(method)))

    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def answer(self: Any, *args: Any, **kwargs: Any) -> Any:
            return await method(self, *plan().examined(args, kwargs))

    else:

        @functools.wraps(method)
        def answer(self: Any, *args: Any, **kwargs: Any) -> Any:
            return method(self, *plan().examined(args, kwargs))

    answer.is_checked = True  # type: ignore[attr-defined] # a function may have any attribute
    return cast("F", answer)


def actor(class_: type[T]) -> type[T]:
    """An actor's class. Other processes can call those of its methods that are `checked`; Ray doesn't show them the others."""
    for name, function in inspect.getmembers(class_, inspect.isfunction):
        if not name.startswith("__") and not getattr(function, "is_checked", False):
            setattr(class_, name, _Inner(function))
    return class_


class _Inner:
    """A method that only its own process can call: Ray lists an actor's functions, and on the class this is none."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else types.MethodType(self._function, instance)


def examine(what: str, kind: Any, value: Any) -> None:
    """Check a value that comes in a place for which its own type says nothing.

    Raises:
        TypeError: it is of another kind.
        ValueError: it is out of bounds.
    """
    try:
        _check_of(kind)(value)
    except _WrongError as wrong:
        raise wrong.kind(f"{what}{wrong.place} {wrong.text}") from None


class _Plan:
    """How the arguments of a method are checked, and unpacked if they may be bytes. `*args` are the method's to check."""

    def __init__(self, method: Callable[..., Any], signature: inspect.Signature) -> None:
        self._name, self._signature = method.__name__, signature
        # Not what it returns, which may be a name for mypy alone; and `Ref` is such a name for a reference.
        said = {name: each for name, each in method.__annotations__.items() if name != "return"}
        hints = typing.get_type_hints(
            types.SimpleNamespace(__annotations__=said), method.__globals__, {"Ref": Reference}, include_extras=True
        )
        self._names = [each.name for each in signature.parameters.values() if each.kind is not each.VAR_POSITIONAL][1:]
        self._checks = [_check_of(hints[name]) for name in self._names]
        self._unpacks = [getattr(hints[name], "unpack", None) for name in self._names]

    def examined(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any]:
        """The arguments of a call.

        Raises:
            TypeError: one is of another kind, or they are too many, or too few.
            ValueError: one is out of bounds.
        """
        if kwargs or len(args) != len(self._names):
            bound = self._signature.bind(None, *args, **kwargs)
            bound.apply_defaults()
            args = bound.args[1:]
        place, found = 0, list(args)
        try:
            for place, check in enumerate(self._checks):
                if type(args[place]) is bytes and (unpack := self._unpacks[place]) is not None:
                    found[place] = _unpacked(unpack, args[place])
                check(found[place])
        except _WrongError as wrong:
            raise wrong.kind(f"{self._name}: {self._names[place]}{wrong.place} {wrong.text}") from None
        return found


def _unpacked(unpack: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return unpack(data)
    except Exception as error:
        raise _WrongError(ValueError, f"can't be unpacked ({type(error).__name__})") from None


# How values are checked. Each function returns a check, which raises `_WrongError`.


@functools.cache
def _check_of(kind: Any) -> Check:
    """The check for an annotation."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _bounded(args[0], args[1:])
    if kind is Any:
        return lambda value: None
    if origin in (typing.Union, types.UnionType):
        return _any_of(args)
    if origin is tuple and args[-1:] != (...,):
        return _fields(tuple, [""] * len(args), args)
    if origin in _MAY_BE:
        return _items(_MAY_BE[origin], origin is collections.abc.Mapping, args)
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        hints = typing.get_type_hints(kind, include_extras=True)
        return _fields(kind, [f".{name}" for name in hints], tuple(hints.values()))
    return _bounded(kind, ()) if kind in PLAIN else _exactly(kind)


def _exactly(kind: type) -> Check:
    def check(value: Any) -> None:
        if type(value) is not kind:
            raise _other_kind(value, kind)

    return check


def _other_kind(value: Any, *kinds: type) -> _WrongError:
    names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
    return _WrongError(TypeError, f"must be {names}, not {shown(type(value).__name__)}")


def _bounded(kind: Any, bounds: Sequence[Any]) -> Check:
    """Of one of the plain types, within these bounds, or else within those of `PLAIN`."""
    said = {type(bound): bound for bound in bounds}
    if IsReference in said:
        return _is_reference
    if OneOf in said:
        texts = said[OneOf].texts
        return _both(_exactly(kind), lambda value: _within(value in texts, "is none of those that there are"))
    if kind in (int, float):
        return _number(kind, said.get(Range, PLAIN[kind]))
    check = _text(said.get(Length, PLAIN[str])) if kind is str else _data(said.get(Length, PLAIN[bytes]))
    return _both(check, _is_address) if IsAddress in said else check


def _both(first: Check, second: Check) -> Check:
    def check(value: Any) -> None:
        first(value)
        second(value)

    return check


def _within(is_right: bool, text: str) -> None:
    if not is_right:
        raise _WrongError(ValueError, text)


def _number(kind: type, bound: Range) -> Check:
    least, most = bound
    also = int if kind is float else kind

    def check(value: Any) -> None:
        number = value  # as in `_fields`
        if type(value) is not kind and type(value) is not also:
            raise _other_kind(value, kind)
        if not least <= number <= most:  # not-a-number is in no range
            raise _WrongError(ValueError, f"must be from {least:g} to {most:g}")

    return check


def _data(bound: Length) -> Check:
    least, most = bound

    def check(value: Any) -> None:
        if type(value) is not bytes:
            raise _other_kind(value, bytes)
        if not least <= len(value) <= most:
            raise _WrongError(ValueError, f"must have {least} to {most} bytes, not {len(value)}")

    return check


def _text(bound: Length) -> Check:
    least, most = bound
    short = most // 4

    def check(value: Any) -> None:
        if type(value) is not str:
            raise _other_kind(value, str)
        if len(value) > short or len(value) < least:
            size = len(value.encode("utf-8", "surrogatepass"))
            if not least <= size <= most:
                raise _WrongError(ValueError, f"must have {least} to {most} bytes in UTF-8, not {size}")

    return check


def _is_reference(value: Any) -> None:
    if not actors.is_reference(value):
        raise _WrongError(
            TypeError, f"must be an ObjectRef or the handle of an actor, not {shown(type(value).__name__)}"
        )


def _is_address(value: bytes) -> None:
    if value and not workers.is_address(value):
        raise _WrongError(ValueError, "must be the address of a process")


def _any_of(kinds: Sequence[Any]) -> Check:
    rest = [_check_of(kind) for kind in kinds if kind is not type(None)]
    has_none = len(rest) < len(kinds)

    def check(value: Any) -> None:
        if value is None and has_none:
            return
        for each in rest[:-1]:
            try:
                each(value)
                return
            except _WrongError:
                continue
        rest[-1](value)

    return check


def _fields(kind: type, places: Sequence[str], kinds: Sequence[Any]) -> Check:
    """A named tuple, or a tuple of so many items of these kinds."""
    checks = [_check_of(each) for each in kinds]
    count = len(checks)

    def check(value: Any) -> None:
        fields = value  # mypy takes the type that is compared for all that is known
        if type(value) is not kind:
            raise _other_kind(value, kind)
        if len(fields) != count:
            raise _WrongError(ValueError, f"must have {count} items, not {len(fields)}")
        number = -1
        try:
            for each in checks:
                number += 1
                each(fields[number])
        except _WrongError as wrong:
            wrong.place = (places[number] or f"[{number}]") + wrong.place
            raise

    return check


def _items(kinds: tuple[type, ...], is_mapping: bool, args: Sequence[Any]) -> Check:
    """A list or the like; of a mapping the keys are texts, and each key and value is checked."""
    each = _check_of(args[-1] if is_mapping else args[0])
    of_key = _check_of(args[0]) if is_mapping else None

    def check(value: Any) -> None:
        if type(value) not in kinds:
            raise _other_kind(value, *kinds)
        if len(value) > MOST_ITEMS:
            raise _WrongError(ValueError, f"must have at most {MOST_ITEMS} items, not {len(value)}")
        number = -1
        try:
            for item in value.values() if is_mapping else value:
                number += 1
                each(item)
            if of_key is not None:
                for key in value:
                    of_key(key)
        except _WrongError as wrong:
            wrong.place = f"[{number}]" + wrong.place
            raise

    return check
