"""What cloudpickle loses of a script's types, or can't open elsewhere, arrives whole in a process that has never heard of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.processes import run_python

WRITER = """
import dataclasses, enum, pathlib, sys, typing
UserId = typing.NewType("UserId", int)
P = typing.ParamSpec("P")
T = typing.TypeVar("T")

@dataclasses.dataclass
class User:
    id: UserId
    name: str = "n"

class Call(typing.Generic[P, T]):
    def __init__(self, call: typing.Callable[P, T]): self.call = call

class Planet(enum.Enum):
    EARTH = (5.9, 6.3)
    MARS = (6.4, 3.3)
    def __init__(self, mass, radius): self.mass, self.radius = mass, radius

class Label(str, enum.Enum):
    def __new__(cls, value, text):
        made = str.__new__(cls, value)
        made._value_, made.text = value, text
        return made
    FIRST = ("a", "the first")

class Size(enum.Enum):
    SMALL = 1
    LITTLE = 1

class Rank(enum.IntFlag):
    LOW = 11
    HIGH = 37

import safe_refs
objects = [UserId, P, User(UserId(4)), Call(len), Planet.EARTH, Label.FIRST, Size.SMALL, Rank.HIGH]
loaded = safe_refs.loads(safe_refs.dumps(objects))
assert all(type(one) is type(other) for one, other in zip(loaded, objects))
assert loaded[:2] == objects[:2] and loaded[4:] == objects[4:]
pathlib.Path(sys.argv[1]).write_bytes(safe_refs.dumps(objects))
"""

READER = """
import dataclasses, json, pathlib, sys, safe_refs
data = pathlib.Path(sys.argv[1]).read_bytes()
for _ in range(2):
    new, var, user, call, planet, label, size, rank = safe_refs.loads(data)
    again = safe_refs.loads(safe_refs.dumps([new, var, user, planet]))
Below = dataclasses.make_dataclass("Below", [("more", int, 3)], bases=(type(user),))
print(json.dumps({
    "a new type": [new(3), new.__name__, new.__module__, new.__supertype__ is int],
    "a type variable": [var.__name__, type(call)[[int], str] is not None, call.call([1])],
    "a dataclass": [user.id, type(user).__annotations__["id"] is new, Below(1).name],
    "an enumeration": [planet.mass, type(planet)((6.4, 3.3)).radius, label.text, label == "a", type(label)("a") is label],
    "aliases": [type(size).LITTLE is size, type(size)["LITTLE"] is size],
    "flags": [rank == 37, rank.name, type(rank)(11).name],
    "the same": [one is other for one, other in zip(again[:2], [new, var])] + [again[2] == user, again[3] is planet],
}))
"""


@pytest.mark.parametrize("first", ["", "import ray\n"])
def test_types_arrive_whole_where_nobody_has_heard_of_them(tmp_path: Path, first: str) -> None:
    """New types, type variables, fields that have no default, and members of enumerations with all that they have."""
    run_python(first + WRITER, str(tmp_path / "data"), script=tmp_path / "writer.py")
    found = run_python(first + READER, str(tmp_path / "data"), script=tmp_path / "reader.py")
    assert found == {
        "a new type": [3, "UserId", "__main__", True],
        "a type variable": ["P", True, 1],
        "a dataclass": [4, True, "n"],
        "an enumeration": [5.9, 3.3, "the first", True, True],
        "aliases": [True, True],
        "flags": [True, "HIGH", "LOW"],
        "the same": [True] * 4,
    }
