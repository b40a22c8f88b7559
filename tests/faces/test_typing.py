"""The face is typed: `Any` stands for what is pickled and loaded, and for nothing else. mypy checks `typed_uses`."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator

import safe_refs
from safe_refs import aio
from tests.support.house import PACKAGE

# Where `Any` may stand: `module: function(parameter)`, or `-> result`. Each is the object that is pickled or loaded.
OBJECTS = {
    "pickling: dumps(obj)",
    "pickling: dumps_many(objs)",
    "pickling: dump(obj)",
    "pickling: loads -> result",
    "pickling: loads_many -> result",
    "loading: open_payload -> result",
    "consuming: consume -> result",
    "pickler: Pickler.dump(obj)",
    "pickler: Pickler.memo(memo)",  # as `pickle.Pickler` has it: the objects that were pickled
    "unpickler: load -> result",
    "unpickler: Unpickler.load -> result",
    "unpickler: Unpickler.find_class -> result",  # whatever a pickle names
    "putting: put(value)",  # only with `payload=True`, where its type is of no use
    "aio: dumps(obj)",
    "aio: dumps_many(objs)",
    "aio: loads -> result",
    "aio: loads_many -> result",
    "aio: put(value)",
    # Handles whose value nobody can know: as `loads`, they come from outside.
    "handle: SafeRef.from_bytes -> result",
    "handle: SafeRef.parse -> result",
    "handle: SafeRef.__reduce__ -> result",
    "inspecting: PayloadInfo.handles -> result",
}
# What public functions and classes give, or want, although it is not in `__all__`.
BEHIND = {
    "lifetimes: Target",
    "lifetimes: Ended",
    "config: Span",
    "inspecting: GivenTerms",
    "pinning: LeaseTerms",
    "engine: BufferCallback",
    "pickling: WritableFile",
    "unpickler: ReadableFile",
    "consuming: Consuming",
    "scopes: Scope",
    "scopes: KeepAlive",
    "pipelines: Pipeline",
}


def test_any_stands_for_the_object_alone() -> None:
    """In every signature, attribute and alias that a user's type checker sees."""
    found: set[str] = set()
    for module, name in sorted(faces()):
        nodes = named(module, name)
        assert nodes, f"{module}: {name}"
        overloads = [node for node in nodes if is_overload(node)]
        for node in overloads or nodes:  # type checkers don't look at what is behind overloads
            found.update(f"{module}: {place}" for place in places(node))
    assert found == OBJECTS


def faces() -> set[tuple[str, str]]:
    """The public functions and classes, as (module, name) of where they are written."""
    found = {(module, name) for module, _, name in (each.partition(": ") for each in BEHIND)}
    for name in safe_refs.__all__:
        thing = getattr(safe_refs, name)
        module = getattr(inspect.unwrap(thing), "__module__", "") if callable(thing) else ""
        if module.startswith("safe_refs") and not name.startswith("_"):
            found.add(("loading" if name == "open_payload" else module.removeprefix("safe_refs."), name))
    for name in aio.__all__:
        thing = inspect.unwrap(getattr(aio, name))
        found.add((thing.__module__.removeprefix("safe_refs."), thing.__name__))
    return found


def named(module: str, name: str) -> list[ast.stmt]:
    """What a module writes under a name: a class, a value, or a function with its overloads."""
    body = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text()).body
    found: list[ast.stmt] = []
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names = {node.name}
        else:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names = {target.id for target in targets if isinstance(target, ast.Name)}
        if name in names:
            found.append(node)
    return found


def is_overload(node: ast.stmt) -> bool:
    marks = getattr(node, "decorator_list", [])
    return any(isinstance(mark, ast.Name) and mark.id == "overload" for mark in marks)


def places(node: ast.stmt, of: str = "") -> Iterator[str]:
    """Where `Any` stands in what a type checker sees of a definition."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        arguments = node.args
        for each in (
            *arguments.posonlyargs,
            *arguments.args,
            *arguments.kwonlyargs,
            *filter(None, (arguments.vararg, arguments.kwarg)),
        ):
            if has_any(each.annotation):
                yield f"{of}{node.name}({each.arg})"
        if has_any(node.returns):
            yield f"{of}{node.name} -> result"
    elif isinstance(node, ast.ClassDef):
        for member in node.body:
            name = getattr(member, "name", getattr(getattr(member, "target", None), "id", ""))
            if not name.startswith("_") or (name.startswith("__") and name.endswith("__")):
                yield from places(member, f"{of}{node.name}.")
    elif isinstance(node, ast.AnnAssign) and (has_any(node.annotation) or has_any(node.value)):
        yield f"{of}{ast.unparse(node.target)}"
    elif isinstance(node, ast.Assign) and has_any(node.value):
        yield f"{of}{ast.unparse(node.targets[0])}"


def has_any(annotation: ast.expr | None) -> bool:
    return annotation is not None and re.search(r"\bAny\b", ast.unparse(annotation)) is not None


def test_what_stands_behind_the_face_is_found() -> None:
    """The list above names what is there."""
    for each in BEHIND:
        module, _, name = each.partition(": ")
        assert hasattr(importlib.import_module(f"safe_refs.{module}"), name), each
    assert not has_any(ast.parse("list[int]", mode="eval").body)
    assert has_any(ast.parse("'dict[str, Any] | None'", mode="eval").body)


def test_unknown_names_are_mistakes_for_type_checkers() -> None:
    """A `__getattr__` that they see would let any name pass, `safe_refs.dmups` too: only Python sees that of `aio`."""
    body = ast.parse((PACKAGE / "__init__.py").read_text()).body
    assert not [node for node in body if isinstance(node, ast.FunctionDef) and node.name == "__getattr__"]
    assert hasattr(safe_refs, "__getattr__")
