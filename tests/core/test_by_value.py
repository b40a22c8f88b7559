"""Classes and functions that another process can't import: they travel by value, and come back as the ones that they were."""

from __future__ import annotations

import re
import threading
import types
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util import register_serializer
from ray.util.serialization import deregister_serializer

import safe_refs
from safe_refs import by_value, identity

# The script's own kinds of classes, each made by `Kind(3, ref)`, and what shows that an instance works.
KINDS = """
import abc, collections, dataclasses, enum, functools, typing
import pydantic

T = typing.TypeVar("T")
made = []

@dataclasses.dataclass
class Data:
    a: int
    ref: object = None

@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    a: int
    ref: object = None

class Base:
    def __init__(self, a, ref=None):
        self.a, self.ref = a, ref
    def works(self):
        return True

class Slots(Base):
    __slots__ = ("a", "ref", "__private")
    def __init__(self, a, ref=None):
        super().__init__(a, ref)
        self.__private = 2
    def works(self):
        return self.__private == 2

class Empty:
    __slots__ = ()
class Below(Empty):
    __slots__ = ("a", "ref", "__weakref__", "__dict__")
    def __init__(self, a, ref=None): self.a, self.ref = a, ref

class Generic(Base, typing.Generic[T]): pass
class OfInt(Generic[int]): pass

class Abstract(abc.ABC):
    @abc.abstractmethod
    def works(self): ...
class Concrete(Base, Abstract):
    def works(self): return isinstance(self, Abstract)
@Abstract.register
class Virtual(Base):
    def works(self): return isinstance(self, Abstract)

class Meta(type):
    def __new__(cls, name, bases, own):
        made.append(name)
        return super().__new__(cls, name, bases, own)
class WithMeta(Base, metaclass=Meta): pass

class Plugin:
    def __init_subclass__(cls): made.append(cls.__name__)
class MyPlugin(Base, Plugin): pass

Tuple = collections.namedtuple("Tuple", "a ref")
class Typed(typing.NamedTuple):
    a: int
    ref: object = None

class Outer:
    class Inner(Base): pass
Inner = Outer.Inner

def local():
    class Local(Base):
        def works(self): return __class__ is type(self)
    return Local
Local = local()

@functools.singledispatch
def describe(x): return "any"
@describe.register
def _(x: int): return "int"
@describe.register
def _(x: Data): return "data"
class Dispatches(Base):
    def works(self): return [describe(None), describe(1), describe(Data(1))] == ["any", "int", "data"]
    @functools.singledispatchmethod
    def method(self, x): return "any"
    @method.register
    def _(self, x: int): return "int"

class Caches(Base):
    @functools.cached_property
    def once(self): return 5
    @functools.lru_cache
    def often(self): return 6
    def works(self): return self.once + self.often() == 11

class Failure(Exception):
    def __init__(self, a, ref=None):
        super().__init__(a)
        self.a, self.ref = a, ref

class Model(pydantic.BaseModel):
    a: int
    ref: object = None
    def __init__(self, a, ref=None, **more): super().__init__(a=a, ref=ref, **more)
class Nested(Model):
    inner: Model | None = None
    def works(self): return type(self)(a="4").a == 4

class Kind(enum.Enum):
    SMALL = 1
    BIG = 2

KINDS = [Data, Frozen, Slots, Below, Generic, OfInt, Concrete, Virtual, WithMeta, MyPlugin, Tuple, Typed, Inner, Local,
         Dispatches, Caches,
         Failure, Model, Nested]

def wrong(kind, obj):
    found = []
    if type(obj) is not kind:
        found.append("another class")
    if obj.a != 3 or not getattr(obj, "works", lambda: True)():
        found.append("doesn't work")
    return [f"{kind.__name__}: {each}" for each in found]
"""


def test_classes_of_a_script_are_the_same_in_its_tasks_and_back(script: Any) -> None:
    """By `safe_refs` as by `ray.cloudpickle`, in any mixture of the two: `isinstance`, identity and equality hold."""
    found = script(
        KINDS
        + """
def check(kind, one, other):
    @ray.remote(num_cpus=0, max_retries=0)
    def there(data):
        obj = one.loads(data)
        return wrong(kind, obj), other.dumps(kind(3, None))
    ways = {}
    found, back = ray.get(there.remote(one.dumps(kind(3, None))), timeout=60)
    return [f"there: {each}" for each in found] + [f"back: {each}" for each in wrong(kind, other.loads(back))]

found = []
cannot = {Slots, Dispatches, Caches}  # ray.cloudpickle can't carry these, so that no task can name them
for kind in KINDS:
    for one in (safe_refs, ray.cloudpickle):
        for other in (safe_refs, ray.cloudpickle):
            if kind not in cannot:
                found += check(kind, one, other)

@ray.remote(num_cpus=0, max_retries=0)
def members(data):
    loaded = safe_refs.loads(data, take=True)
    return loaded[0] is Kind.BIG, loaded[1] == Data(3, Kind.BIG), safe_refs.dumps([Kind.BIG, Data(3, Kind.BIG)])
ref = ray.put(1)
*there, back = ray.get(members.remote(safe_refs.dumps([Kind.BIG, Data(3, Kind.BIG), ref], ttl=60)), timeout=60)
home = safe_refs.loads(back)
print(json.dumps([found, there, [home[0] is Kind.BIG, home[1] == Data(3, Kind.BIG)]]))
"""
    )
    assert found == [[], [True, True], [True, True]]


def test_all_kinds_of_classes_travel_to_a_worker_and_back(script: Any) -> None:
    """Also those that `ray.cloudpickle` can't carry; opened twice, it is one class; a slot stays a slot."""
    found = script(
        KINDS
        + """
@ray.remote(num_cpus=0, max_retries=0)
def there(data):
    one, other = safe_refs.loads(data), safe_refs.loads(data, take=True)
    works = type(one) is type(other) and one.a == 3 and getattr(one, "works", lambda: True)()
    method = one.method(1) == "int" if hasattr(one, "method") else True
    return works and method, hasattr(one, "__slots__") and hasattr(one, "__private"), safe_refs.dumps(one)

ref, found = ray.put(1), []
for kind in KINDS:
    works, _, back = ray.get(there.remote(safe_refs.dumps(kind(3, ref), ttl=60)), timeout=60)
    found += [] if works else [kind.__name__]
    found += wrong(kind, safe_refs.loads(back, take=True))
print(json.dumps(found))
"""
    )
    assert found == []


@pytest.mark.parametrize("what", ["lock", "generator", "socket"])
def test_what_plain_pickle_takes_dumps_takes(script: Any, what: str) -> None:
    """Where a class can't go by value, for what its methods use or its attributes hold, it goes by its name."""
    found = script(
        f"""
import socket, threading
LOCK = {{"lock": threading.Lock, "generator": lambda: (x for x in [1]), "socket": socket.socket}}[{what!r}]()
class Job:
    def __init__(self, source): self.source = source
    def run(self):
        LOCK
        return ray.get(self.source, timeout=30)
class Held:
    lock = LOCK
    def __init__(self, source): self.source = source
"""
        """
found = [type(safe_refs.loads(safe_refs.dumps(kind(None)))) is kind for kind in (Job, Held)]
payload = safe_refs.dumps([Job(ray.put(41)), Held(1)], ttl=60)
job, held = safe_refs.loads(payload, take=True)
print(json.dumps([*found, type(job) is Job, type(held) is Held, job.run()]))
"""
    )
    assert found == [True, True, True, True, 41]


def test_what_cannot_be_pickled_at_all_raises_as_ever(script: Any) -> None:
    """The error is the one of pickling by value, and is raised once, without another in its wake."""
    found = script(
        """
import threading
class Job:
    def __init__(self): self.lock = threading.Lock()
try:
    safe_refs.dumps([Job(), ray.put(1)], ttl=60)
except TypeError as error:
    print(json.dumps([str(error), error.__context__ is None or error.__suppress_context__]))
"""
    )
    assert found == ["cannot pickle '_thread.lock' object", True]


@pytest.mark.parametrize("lister", ["ray.cloudpickle", "cloudpickle"])
@pytest.mark.parametrize("listed", [pytest.param("orders_here", marks=pytest.mark.long), "orders_here.parts"])
def test_modules_registered_with_either_copy_go_by_value(script: Any, tmp_path: Path, lister: str, listed: str) -> None:
    """`register_pickle_by_value` of Ray's copy and of PyPI's: a worker that can't import the module opens the payload."""
    package = tmp_path / "modules" / "orders_here"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text(
        "import enum\nclass Kind(enum.Enum):\n    A = 1\n"
        "class Order:\n    kind = Kind.A\n    def total(self):\n        return helper(self)\n"
        "def helper(order):\n    return 21 if order.kind is Kind.A else 0\n"
    )
    found = script(
        f"""
sys.path.insert(0, {str(package.parent)!r})
import importlib, {lister}
module = importlib.import_module("orders_here.parts")
"""
        """
@ray.remote(num_cpus=0)
def total(data):
    loaded = safe_refs.loads(data, take=True)
    return loaded["order"].total(), loaded["module"].helper(loaded["order"]), safe_refs.dumps(loaded["order"])
"""
        f"""
{lister}.register_pickle_by_value(importlib.import_module({listed!r}))
ref = ray.put(1)
*found, back = ray.get(total.remote(safe_refs.dumps(dict(order=module.Order(), module=module, ref=ref), ttl=60)), timeout=60)
found.append(type(safe_refs.loads(back)) is module.Order)
{lister}.unregister_pickle_by_value(importlib.import_module({listed!r}))
print(json.dumps([*found, safe_refs.dumps(module.Order()) == pickle.dumps(module.Order(), 5)]))
"""
    )
    assert found == [21, 21, True, True]


class Connection:
    """Can be pickled by a serializer of the user's alone."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.socket = threading.Lock()


def test_serializers_registered_with_ray_are_used(cluster: str) -> None:
    """`ray.util.register_serializer`: also for a class that plain pickle could pickle otherwise; and no more once deregistered."""
    ref = ray.put("v")
    register_serializer(Connection, serializer=lambda it: it.host, deserializer=Connection)
    register_serializer(types.SimpleNamespace, serializer=vars, deserializer=dict)
    try:
        payload = safe_refs.dumps({"connection": Connection("here"), "plain": types.SimpleNamespace(a=1), "ref": ref})
    finally:
        deregister_serializer(Connection)
        deregister_serializer(types.SimpleNamespace)
    loaded = safe_refs.loads(payload, take=True)
    assert loaded["connection"].host == "here"
    assert loaded["plain"] == {"a": 1}
    assert not by_value.is_asked_for()
    assert safe_refs.loads(safe_refs.dumps(types.SimpleNamespace(a=1))) == types.SimpleNamespace(a=1)


def test_the_parts_of_cloudpickle_that_are_built_on_are_there() -> None:
    """Both copies have the private names that `by_value` and `identity` use."""
    import cloudpickle.cloudpickle as pypis
    import ray.cloudpickle.cloudpickle as rays

    texts = [Path(str(module.__file__)).read_text() for module in (by_value, identity)]
    names = {name for text in texts for name in re.findall(r"\b(?:base|each|copy|CloudPickler)\.(_\w+)", text)}
    assert len(names) > 10
    for copy in (rays, pypis):
        assert [name for name in names if not hasattr(copy, name) and not hasattr(copy.CloudPickler, name)] == []


def test_a_closure_over_references_holds_them(script: Any) -> None:
    """References in a closure, in globals that a function uses, and in a class's attributes belong to the lease."""
    found = script(
        """
GLOBAL = ray.put("global")
def make(ref):
    return lambda: ray.get([ref, GLOBAL], timeout=20)
class Holder:
    ref = ray.put("attribute")
payload = safe_refs.dumps([make(ray.put("closure")), Holder()], ttl=60)
@ray.remote(num_cpus=0)
def there(data):
    call, holder = safe_refs.loads(data, take=True)
    return [*call(), ray.get(holder.ref, timeout=20)]
print(json.dumps(ray.get(there.remote(payload), timeout=60)))
"""
    )
    assert found == ["closure", "global", "attribute"]


def test_too_deep_a_recursion_is_both_errors() -> None:
    """What plain pickle's users catch, and what cloudpickle's do."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for obj, protocol in ((deep, None), ([deep, lambda: 1], None), (deep, 2)):
        with pytest.raises(RecursionError) as caught:
            safe_refs.dumps(obj, protocol)
        assert isinstance(caught.value, safe_refs.PicklingError)
