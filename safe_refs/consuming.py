"""`consume`: what a queue's consumer needs. The lease ends when the object has been processed, and lives on when that fails.

What always holds: the lease is released after the block has succeeded, and not before; whatever goes wrong earlier leaves it as it
was, but for a use that a consumer which dies has spent.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast, overload

from . import asks, callers, checks, envelope, spending, threads
from .handle import SafeRef
from .inspecting import is_buffer
from .loading import load_all, load_async

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")


class Consuming(Generic[T]):
    """What `consume()` gives: a context manager, also an asynchronous one, for one use.

    Args:
        targets: payloads and handles.
        is_one: the block gets the one object, not a list.
        how: arguments for `pickle.loads`.
        timeout: as for `loads`.
    """

    def __init__(
        self, targets: list[object], is_one: bool, how: dict[str, object], timeout: float | timedelta | None
    ) -> None:
        self._targets = targets
        self._is_one = is_one
        self._how = how
        self._timeout = timeout
        self._uses: list[spending.Use] = []  # of the leases that the block holds: one for each target at most
        self._is_entered = False

    def __repr__(self) -> str:
        return f"<consume of {len(self._targets)} target(s)>"

    def __enter__(self) -> T:
        self._enter()
        with spending.unless_opened(self._uses, self._timeout):
            values = [
                each._load(None, self._timeout, self._uses) for each in self._targets if isinstance(each, SafeRef)
            ]
            return self._in_order(values, load_all(self._payloads(), self._how, self._uses, timeout=self._timeout))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is None:
            if self._uses:  # else there is no lease, and no need of Ray
                asks.release(self._addresses(), self._timeout)
            self._uses.clear()
        else:
            spending.give_back(self._uses, self._timeout)
            self._uses.clear()

    async def __aenter__(self) -> T:
        self._enter()
        try:
            values = [
                await each._load_async(self._timeout, self._uses) for each in self._targets if isinstance(each, SafeRef)
            ]
            return self._in_order(values, await self._load_payloads())
        except GeneratorExit:
            self._give_back_soon()
            raise
        except BaseException:
            await spending.give_back_async(self._uses, self._timeout)
            raise

    async def _load_payloads(self) -> list[Any]:
        payloads = self._payloads()
        if len(payloads) == 1:  # in the caller's task, as `aio.loads` does
            return [await load_async(payloads[0], self._how, self._uses, timeout=self._timeout)]
        from .awaiting import undoable  # imports asyncio, which most processes never need

        uses: list[spending.Use] = []
        load = partial(load_all, payloads, self._how, uses, timeout=self._timeout)
        loaded = await undoable(load, lambda _: spending.give_back(uses, self._timeout), self._timeout)
        self._uses += uses
        return loaded

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is None:
            if self._uses:
                release = partial(asks.release, self._addresses(), self._timeout)
                await callers.to_thread(release, await asks.waits_s(self._timeout))
            self._uses.clear()
        elif kind is GeneratorExit:
            self._give_back_soon()
        else:
            await spending.give_back_async(self._uses, self._timeout)

    def __await__(self) -> NoReturn:
        raise TypeError("consume() is entered, not awaited: async with consume(payload) as obj")

    def _enter(self) -> None:
        if self._is_entered:
            raise RuntimeError("what consume() gives can be entered once: call consume() again")
        self._is_entered = True

    def _payloads(self) -> list[Any]:
        return [each for each in self._targets if not isinstance(each, SafeRef)]

    def _in_order(self, values: list[Any], loaded: list[Any]) -> T:
        """What the block gets: the values of the handles and the objects of the payloads, each in its target's place."""
        handles, payloads = iter(values), iter(loaded)
        found = [next(handles if isinstance(each, SafeRef) else payloads) for each in self._targets]
        return cast("T", found[0] if self._is_one else found)

    def _addresses(self) -> dict[envelope.LeaseAddress, None]:
        return dict.fromkeys(use.address for use in self._uses)

    def _give_back_soon(self) -> None:
        """The coroutine is closed, and can't wait for anything any more."""
        if any(use.use for use in self._uses):
            threads.later(partial(spending.give_back, self._uses.copy(), self._timeout))
        self._uses.clear()


@overload
def consume(
    target: SafeRef[T],
    *,
    fix_imports: bool = True,
    encoding: str = "ASCII",
    errors: str = "strict",
    buffers: Iterable[Buffer] | None = None,
    timeout: float | timedelta | None = None,
) -> Consuming[T]: ...
@overload
def consume(
    target: Buffer | str,
    *,
    fix_imports: bool = True,
    encoding: str = "ASCII",
    errors: str = "strict",
    buffers: Iterable[Buffer] | None = None,
    timeout: float | timedelta | None = None,
) -> Consuming[Any]: ...
@overload
def consume(
    target: Iterable[Buffer | str | SafeRef[object]],
    *,
    fix_imports: bool = True,
    encoding: str = "ASCII",
    errors: str = "strict",
    timeout: float | timedelta | None = None,
) -> Consuming[list[Any]]: ...
def consume(
    target: Any,
    *,
    fix_imports: bool = True,
    encoding: str = "ASCII",
    errors: str = "strict",
    buffers: Iterable[Buffer] | None = None,
    timeout: float | timedelta | None = None,
) -> Consuming[Any]:
    """A context manager for a queue's consumer: the block gets the object, and the lease is released when the block succeeds.

    If the block raises, the lease stays, and a use of it is given back: the message can be consumed again. It can be, too, after a
    consumer was killed in the block; but where the lease counts its `uses`, that consumer has spent one. `async with` works, and
    doesn't block the loop.

    Args:
        target: a payload, which gives its object; a `SafeRef` or its text, which gives its value, waited for as long as it takes; or
            an iterable of these (no set or dict), which gives a list. All of it is released in one call. A payload without references
            has no lease: it is just opened.
        fix_imports: as for `loads`, like `encoding`, `errors` and `buffers`.
        encoding: see `fix_imports`.
        errors: see `fix_imports`.
        buffers: see `fix_imports`; for a single payload.
        timeout: seconds to wait for the registry, on entering and on leaving; default from `init` or `SAFE_REFS_TIMEOUT`.

    Returns:
        The context manager. It can be entered once.

    Raises:
        LeaseError: on entering: a lease has ended; `LeaseReleasedError` if somebody has consumed it already: acknowledge the message.
        RegistryUnavailableError: on entering or on leaving: no Ray connection, or no answer in time. On leaving, the block has
            succeeded, but the lease may be left: don't acknowledge the message, and it comes again.
        RuntimeError: on entering, if it was entered before.
        TypeError: `target` is nothing of these, or `buffers` come with several.
        Exception: on entering, as from `loads` and `SafeRef.get`.
    """
    is_one = isinstance(target, (str, SafeRef)) or is_buffer(target)
    if not is_one and not isinstance(target, Iterable):
        raise TypeError(
            f"consume takes a payload, a SafeRef or its text, or an iterable of these, not {type(target).__name__}"
        )
    if not is_one and buffers is not None:
        raise TypeError("buffers belong to one payload: consume one at a time")
    if not is_one:
        checks.check_ordered(target)
    targets = [SafeRef.parse(each) if isinstance(each, str) else each for each in ([target] if is_one else target)]
    for each in targets:
        if not isinstance(each, SafeRef) and not is_buffer(each):
            raise TypeError(f"consume takes payloads, SafeRefs and their texts, not {type(each).__name__}")
    how = {"fix_imports": fix_imports, "encoding": encoding, "errors": errors}
    return Consuming(targets, is_one, how if buffers is None else {**how, "buffers": buffers}, timeout)
