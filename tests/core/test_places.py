"""Where something stands in an object: the expression gives that very thing, whatever the object is made of."""

from __future__ import annotations

import collections
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import safe_refs
from safe_refs import places
from safe_refs.errors import UnsupportedReferenceError


class Target:
    """What is looked for; equal to all others of its kind, so that only identity tells."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Target)

    def __hash__(self) -> int:
        return 0


@dataclasses.dataclass
class Row:
    name: Any
    ref: Any = None


@dataclasses.dataclass(frozen=True)
class Slotted:
    __slots__ = ("ref",)
    ref: Any


class Below(Slotted):
    """Slots of a base, and a dict of its own."""


class Private:
    def __init__(self, ref: Any) -> None:
        self.__ref = ref


class Hidden:
    """Keeps in its dict what a property of the same name hides."""

    def __init__(self, ref: Any) -> None:
        vars(self)["ref"] = ref

    @property
    def ref(self) -> str:
        return "something else"

    @ref.setter
    def ref(self, value: Any) -> None:
        raise NotImplementedError


class Hostile:
    """Raises whatever it is asked."""

    def __init__(self, ref: Any) -> None:
        self.ref = ref

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")

    def __hash__(self) -> int:
        raise RuntimeError("hash")

    def __repr__(self) -> str:
        raise RuntimeError("repr")


class HostileDict(dict[Any, Any]):
    def __iter__(self) -> Any:
        raise RuntimeError("iter")

    def items(self) -> Any:
        raise RuntimeError("items")


class Unopened:
    @property
    def __dict__(self) -> Any:  # type: ignore[override] # the point
        raise RuntimeError("no")


class Pair(NamedTuple):
    left: Any
    right: Any


class Method:
    def __init__(self, ref: Any) -> None:
        self.ref = ref

    def call(self) -> Any:
        return self.ref


def default(ref: Any, *, by_name: Any = None) -> Callable[..., Any]:
    return lambda first=ref, *, second=by_name: (first, second)


def local_class(ref: Any) -> Any:
    class Local:
        shared = ref

    return Local


def with_attribute(ref: Any) -> Any:
    def function() -> None:
        pass

    function.ref = ref  # type: ignore[attr-defined] # functions take any
    return function


A_GLOBAL: Any = None


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda it: it, "payload"),
        (lambda it: {"batch": [0, 0, 0, Row("x", it)]}, "payload['batch'][3].ref"),
        (lambda it: {("a", 1): {b"b": {None: {1.5: it}}}}, "payload[('a', 1)][b'b'][None][1.5]"),
        (lambda it: {float("nan"): 1, Target(): it}, "list(payload.values())[1]"),
        (lambda it: {"x" * 1000: it}, "list(payload.values())[0]"),
        (lambda it: {it: 1}, "list(payload)[0]"),
        (lambda it: {(it,): 1}, "list(payload)[0][0]"),
        (lambda it: {it}, "list(payload)[0]"),
        (lambda it: frozenset([it]), "list(payload)[0]"),
        (lambda it: (1, [it]), "payload[1][0]"),
        (lambda it: collections.deque([1, it]), "payload[1]"),
        (lambda it: collections.OrderedDict(a=it), "payload['a']"),
        (lambda it: collections.defaultdict(None, a=it), "payload['a']"),
        (lambda it: collections.ChainMap({}, {"a": it}), "payload.maps[1]['a']"),
        (lambda it: HostileDict(a=it), "payload['a']"),
        (lambda it: Pair(1, it), "payload.right"),
        (lambda it: Slotted(it), "payload.ref"),
        (lambda it: Below(it), "payload.ref"),
        (lambda it: Private(it), "payload._Private__ref"),
        (lambda it: Hidden(it), "vars(payload)['ref']"),
        (lambda it: ValueError("carries", it), "payload.args[1]"),
        (lambda it: np.array([None, it], dtype=object), "payload.flat[1]"),
        (lambda it: functools.partial(print, 1, it), "payload.args[1]"),
        (lambda it: functools.partial(print, end=it), "payload.keywords['end']"),
        (lambda it: Method(it).call, "payload.__self__.ref"),
        (lambda it: lambda: it, "payload.__closure__[0].cell_contents"),
        (lambda it: default(it), "payload.__defaults__[0]"),
        (lambda it: default(1, by_name=it), "payload.__kwdefaults__['second']"),
        (lambda it: with_attribute(it), "payload.ref"),
        (lambda it: local_class(it), "payload.shared"),
        (lambda it: local_class(it)(), "type(payload).shared"),
        (lambda it: [{"long": [[it]]}, {"short": it}], "payload[1]['short']"),
    ],
)
def test_each_kind_of_object_names_what_is_in_it(make: Any, expected: str) -> None:
    """The expression is the shortest there is, and gives that very object."""
    target = Target()
    payload = make(target)
    found = places.find(payload, target)
    assert found == expected
    assert eval(found, {"payload": payload}) is target  # noqa: S307 # what the expression is for


@pytest.mark.parametrize("name", ["class", "ﬁ", "not a name", "__dict__", "__class__", ""])
def test_attributes_of_strange_names(name: str) -> None:
    """An attribute that Python's grammar can't name is named all the same."""
    target = Target()
    payload = Row("x")
    vars(payload)[name] = target
    found = places.find(payload, target)
    assert found is not None
    assert eval(found, {"payload": payload}) is target  # noqa: S307 # as above


def test_a_global_that_a_function_of_no_name_uses() -> None:
    """Cloudpickle takes such a global along, also from a function inside."""
    global A_GLOBAL
    A_GLOBAL = Target()
    payload = [lambda: [A_GLOBAL for _ in range(3)]]
    found = places.find(payload, A_GLOBAL)
    assert found == "payload[0].__globals__['A_GLOBAL']"
    assert eval(found, {"payload": payload}) is A_GLOBAL  # noqa: S307 # as above


def test_what_a_pickle_names_is_not_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions and classes that others can import: a reference in them goes nowhere with a pickle."""
    target = Target()
    monkeypatch.setattr(Method, "shared", target, raising=False)
    monkeypatch.setattr(default, "__kwdefaults__", {"by_name": target})
    assert places.find([Method, Method(1), default], target) is None


def test_cycles_end() -> None:
    """An object in itself is looked into once."""
    payload: dict[str, Any] = {}
    payload["me"] = [payload, {"again": payload}]
    assert places.find(payload, Target()) is None
    payload["last"] = target = Target()
    assert places.find(payload, target) == "payload['last']"


@pytest.mark.parametrize("make", [Hostile, lambda it: [Hostile(1), it], lambda it: [Unopened(), it]])
def test_classes_that_raise_at_every_touch_do_no_harm(make: Any) -> None:
    """The search doesn't ask them, and what they raise is no reason to end."""
    target = Target()
    assert places.find([make(target), target], target) is not None


def test_a_proxy_that_passes_for_something_else_is_not_asked() -> None:
    """What an object says its class is has no part in it."""

    class Proxy:
        @property
        def __class__(self) -> Any:  # the point
            raise RuntimeError("asked")

        @__class__.setter
        def __class__(self, _: Any) -> None:
            raise NotImplementedError

    target = Target()
    assert places.find([Proxy(), [target]], target) == "payload[1][0]"


def test_the_search_is_bounded() -> None:
    """After so many objects it gives up; numbers and texts are not counted."""
    target = Target()
    assert places.find([[n] for n in range(1000)] + [[[target]]], target, at_most=500) is None
    assert places.find([*range(200_000), target], target, at_most=10) == "payload[200000]"
    started = time.monotonic()
    assert places.find([[[n]] for n in range(300_000)], target) is None
    assert time.monotonic() - started < 20  # about one second; the machine may be busy


# Objects of all kinds, with the target somewhere in it, or not.
TARGET = Target()
keys = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=100) | st.binary(max_size=3)
    | st.tuples(st.integers(), st.text(max_size=3)) | st.builds(Target)
)  # fmt: skip
leaves = st.just(TARGET) | st.builds(Target) | st.none() | st.integers() | st.text(max_size=3)
things = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(inner, max_size=4).map(collections.deque),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4).map(HostileDict),
        st.builds(Pair, inner, inner),
        st.builds(Row, inner, inner),
        st.builds(Slotted, inner),
        st.builds(Private, inner),
        st.builds(ValueError, inner),
        st.builds(functools.partial, st.just(print), inner),
        st.builds(lambda each: Method(each).call, inner),
        st.builds(lambda each: lambda: each, inner),
        st.builds(default, inner),
        st.builds(local_class, inner),
    ),
    max_leaves=30,
)


@given(things, st.data())
def test_the_expression_gives_that_very_object(payload: Any, data: st.DataObject) -> None:
    """Whatever the object is: what is found is the target, and it is found wherever it is put."""
    found = places.find(payload, TARGET)
    if found is not None:
        assert eval(found, {"payload": payload}) is TARGET  # noqa: S307 # as above
    target = Target()
    hidden = data.draw(st.sampled_from([[payload, target], {"p": payload, "t": [target]}, Row(payload, (target,))]))
    found = places.find(hidden, target)
    assert found is not None
    assert eval(found, {"payload": hidden}) is target  # noqa: S307 # as above


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), things)
def test_what_is_put_at_a_place_is_found_there(path: list[int], beside: Any) -> None:
    """Down a path through containers of several kinds, beside anything: found, and not further down than it is."""
    target = Target()
    into: list[Callable[[Any], Any]] = [
        lambda it: [beside, it],
        lambda it: {"beside": beside, "it": it},
        lambda it: Row(beside, it),
        lambda it: Pair(beside, it),
        lambda it: lambda: (beside, it),
    ]
    inner: Any = target
    for kind in path:
        inner = into[kind](inner)
    found = places.find(inner, target)
    assert found is not None
    assert eval(found, {"payload": inner}) is target  # noqa: S307 # as above


def test_an_error_is_given_once_and_holds_nothing_afterwards() -> None:
    """The first that knows the object says where it stands; the error lets go of the reference."""
    target = Target()
    error = UnsupportedReferenceError.of(target, "a Target, which safe_refs can't carry", "leave it", kind="Target")
    assert str(error) == "the object holds a Target, which safe_refs can't carry: leave it"
    places.explain(error, [1, target])
    assert str(error) == "payload[1] is a Target, which safe_refs can't carry: leave it"
    places.explain(error, target, "other")
    assert error.place == "payload[1]"
    assert error.refused is None
    other = UnsupportedReferenceError.of(target, "a Target, which safe_refs can't carry", "leave it", kind="Target")
    places.explain(other, [1])
    assert other.place is None
    assert "payload holds a Target, which safe_refs can't carry (somewhere in it, behind a __reduce__" in str(other)


def test_what_is_carried_is_never_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a refusal no object is looked into."""
    monkeypatch.setattr(places, "find", None)
    assert safe_refs.loads(safe_refs.dumps([1, {"a": Row(1, 2)}])) == [1, {"a": Row(1, 2)}]
