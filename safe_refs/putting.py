"""`put`: a value goes straight into a handle or a payload, as by `ray.put` and `pin`, or `ray.put` and `dumps`, in one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from . import config, payloads, pickling, pinning
from ._ray import objects
from .handle import SafeRef
from .kinds import kind_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .pinning import LeaseTerms

T = TypeVar("T")


@overload
def put(value: T, *, payload: Literal[False] = False, **terms: Unpack[LeaseTerms]) -> SafeRef[T]: ...
@overload
def put(value: Any, *, payload: Literal[True], **terms: Unpack[LeaseTerms]) -> bytes: ...
@payloads.outside
def put(
    value: Any,
    *,
    payload: bool = False,
    ttl: float | timedelta | None = None,
    uses: int | None = None,
    durable: bool | None = None,
    label: str | None = None,
    wait: bool | None = None,
    registry: str | None = None,
    timeout: float | timedelta | None = None,
) -> SafeRef[Any] | bytes:
    """Put a value into Ray's object store, large or small, under a lease: `ray.put` and `pin` in one.

    This process owns the object, so that it dies with this process unless `durable=True`.

    Args:
        value: whatever `ray.put` takes.
        payload: True gives a payload, whose `loads` is the `ObjectRef`, in place of a handle.
        ttl: as for `dumps`, like all below.
        uses: see `ttl`.
        durable: see `ttl`.
        label: see `ttl`.
        wait: see `ttl`.
        registry: see `ttl`.
        timeout: see `ttl`.

    Returns:
        A `SafeRef`, whose `get()` is the value; or a payload.

    Raises:
        TypeError: the value is a reference already: `pin` or `dumps` takes it.
        RegistryUnavailableError: no Ray connection, or no answer in time.
        RegistryFullError: a limit of the registry would be passed.
    """
    if kind_of(value) is not None:
        raise TypeError(
            f"put takes a value, not {type(value).__name__}, which is a reference already: use pin or dumps"
        )
    as_payload = config.flag(payload, "payload")
    payloads.client()  # without a connection, nothing need be put
    make: Callable[..., SafeRef[Any] | bytes] = pickling.dumps if as_payload else pinning.pin
    return make(
        objects.put(value),
        ttl=ttl,
        uses=uses,
        durable=durable,
        label=label,
        wait=wait,
        registry=registry,
        timeout=timeout,
    )
