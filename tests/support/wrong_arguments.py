"""Wrong arguments, generated from the public signatures: each parameter of each function gets what is wrong for its kind."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import safe_refs
from safe_refs import aio
from safe_refs.scopes import Scope

from .mistakes import Given, Mistake
from .wrong_kinds import Wrong, is_, text_of, wrong


class Public(NamedTuple):
    """A public function or method.

    Attributes:
        name: as users write it.
        signature: its parameters, without `self`.
        of: gives the callable.
    """

    name: str
    signature: inspect.Signature
    of: Callable[[Given], Callable[..., Any]]


def _kept(name: str) -> Callable[[Given], Callable[..., Any]]:
    def of(given: Given) -> Callable[..., Any]:
        method: Callable[..., Any] = getattr(given.handle, name)
        return method

    return of


def _keep(given: Given) -> Callable[..., Any]:
    def keep(target: Any) -> Any:
        with safe_refs.scope() as scope:
            return scope.keep(target)

    return keep


def public() -> list[Public]:
    """Every function and method that users call: the face, the awaitable one, handles, scopes and picklers."""
    found = []
    for module, prefix in ((safe_refs, ""), (aio, "aio.")):
        for name in module.__all__:
            each = getattr(module, name)
            if inspect.isfunction(each) and not name.startswith("_"):
                found.append(Public(prefix + name, inspect.signature(each), is_(each)))
    for kind in (safe_refs.Pickler, safe_refs.Unpickler):
        found.append(Public(kind.__name__, inspect.signature(kind), is_(kind)))
    for name, method in vars(safe_refs.SafeRef).items():
        if not name.startswith("_") and callable(getattr(safe_refs.SafeRef, name)):
            bound = inspect.signature(getattr(safe_refs.SafeRef, name))
            parameters = [each for each in bound.parameters.values() if each.name != "self"]
            found.append(Public(f"SafeRef.{name}", bound.replace(parameters=parameters), _kept(name)))
        del method
    row_release = inspect.signature(safe_refs.LeaseInfo.release.__get__(object()))
    found.append(Public("LeaseInfo.release", row_release, lambda _: safe_refs.leases()[0].release))
    found.append(Public("Scope.keep", inspect.signature(Scope.keep.__get__(object())), _keep))
    return found


RIGHT: dict[str, Callable[[Given], Any]] = {
    "obj": lambda given: given.ref,
    "objs": lambda given: [given.ref],
    "value": is_(1),
    "data": lambda given: given.payload,
    "payload": lambda given: given.payload,
    "payloads": lambda given: [given.payload],
    "target": lambda given: given.payload,
    "ref": lambda given: given.ref,
    "handle": lambda given: given.handle,
    "text": text_of,
    "file": lambda given: io.BytesIO(given.payload),
    "body": lambda given: given.payload,
    "ttl": is_(60),
}


# What has to be given beside a parameter, though it has a default.
BESIDES = {("release", "timeout"): "target", ("release", "registry"): "target"}


def mistakes(of: Public) -> Iterator[Mistake]:
    """The mistakes with the arguments of one function, the others being right."""
    for parameter in of.signature.parameters.values():
        for each in wrong(of.name, parameter) or ():
            yield Mistake(
                f"{of.name}: {parameter.name} is {each.name}",
                partial(_call, of, parameter, each),
                each.error,
                each.says.format(parameter.name),
            )


def _call(of: Public, parameter: inspect.Parameter, wrong: Wrong, given: Given) -> Any:
    value = wrong.value(given)
    args, kwargs = [], {}
    besides = BESIDES.get((of.name.removeprefix("aio."), parameter.name))
    for each in of.signature.parameters.values():
        if each is not parameter and each.default is not each.empty and each.name != besides:
            continue
        argument = value if each is parameter else RIGHT[each.name](given)
        if each.kind is each.KEYWORD_ONLY:
            kwargs[each.name] = argument
        else:
            args.append(argument)
            if each.kind is each.POSITIONAL_OR_KEYWORD and each is parameter and each.default is not each.empty:
                args.pop()
                kwargs[each.name] = argument
    return of.of(given)(*args, **kwargs)
