"""Send Ray references through anything that carries bytes, load them back anywhere in the cluster, and choose how long they live.

`import safe_refs as pickle` works. References in an object (`ObjectRef`, `ActorHandle`) are held by a registry, under a lease that
ends by `release`, by its `ttl`, by its `uses` or by a `scope`. The bytes are then a payload: `inspect(payload)` shows what is in it.

Objects to bytes, and back:
    dumps            pickle an object; its references are held from before this returns until the lease ends
    dump             the same, to a file
    dumps_many       many objects, with one call to the registry
    loads            load what `dumps`, or any pickler, wrote
    load             the same, from a file
    loads_many       many payloads, with one call to the registry
    open_payload     what a payload calls when a plain `pickle.load` opens it; use `loads` yourself
    put              a value, straight into a payload or a handle
    pin              hold references by themselves: a handle for each
How long leases live:
    inspect          read what a payload says of itself: no Ray, no unpickling
    release          end leases: those of payloads or handles, or all that have this label, job or age
    renew            let a lease live so many seconds from now
    expires_in_s     seconds until a lease's ttl runs out
    consume          a block: it gets the object; if it succeeds, the lease ends, and if it fails, the lease lives on
    scope            a block: leases made inside end with it
    keepalive        a block: leases with a ttl don't run out while it runs
Without waiting:
    pipeline         a block: nothing inside waits for the registry; its end does
    flush            wait until all is held that was passed on without waiting
The registry:
    init             choose the registry and the settings, and start it
    settings         which settings hold here, and who said so
    leases           the live leases: who made them, where, and what they hold
    stats            figures of the registry
    shutdown         release all its leases, and end it
In an event loop:
    aio              a module with the same, awaitable
Classes:
    SafeRef          a handle: names one reference of one lease
    PayloadInfo      what `inspect` returns
    LeaseInfo        a row of `leases()`
    RegistryStats    what `stats` returns
    Settings         what `settings` returns
    Pickler          `dump` with a memo, and for subclasses with hooks
    Unpickler        `load`, for subclasses with hooks
Errors (help(safe_refs.LeaseError) says more, and so on):
    SafeRefsError                  the root of all below
    EnvelopeError                  a payload or a handle's text is cut or altered; also a pickle.UnpicklingError
    UnsupportedReferenceError      a reference that can't be carried; also a pickle.PicklingError
    LeaseError                     the lease can't be had; its subclasses say why; also a LookupError
    LeaseReleasedError             somebody has released it
    LeaseExpiredError              its ttl ran out
    LeaseUsedUpError               its uses are spent
    LeaseLostError                 its references are gone with the registry, or with the process that it depended on
    LeaseRejectedError             the registry refused its pin, for which nobody waited
    LeaseNotFoundError             it was never here, or ended long ago
    OwnerGoneError                 the objects died with the process that owned them
    WrongClusterError              it was made in another Ray cluster
    RegistryUnavailableError       no Ray connection, or no answer in time; also a ConnectionError
    RegistryFullError              a limit of the registry would be passed
"""

from pickle import (
    HIGHEST_PROTOCOL,
    PickleBuffer,
    PickleError,
    PicklingError,
    UnpicklingError,
)
from typing import TYPE_CHECKING

from . import logs as _logs  # noqa: F401 # it sees to what our loggers say, before anything logs
from ._settings import Settings
from ._version import __version__
from .admin import init, leases, settings, shutdown, stats
from .consuming import consume
from .engine import PROTOCOL as DEFAULT_PROTOCOL
from .errors import (
    EnvelopeError,
    LeaseError,
    LeaseExpiredError,
    LeaseLostError,
    LeaseNotFoundError,
    LeaseRejectedError,
    LeaseReleasedError,
    LeaseUsedUpError,
    OwnerGoneError,
    RegistryFullError,
    RegistryUnavailableError,
    SafeRefsError,
    UnsupportedReferenceError,
    WrongClusterError,
)
from .handle import SafeRef
from .identity import fill_if_made as _fill_if_made  # payloads name it, like the next: part of the format
from .identity import known_or_made as _known_or_made
from .inspecting import PayloadInfo, inspect
from .lifetimes import expires_in_s, keepalive, release, renew, scope
from .loading import open_payload
from .pickler import Pickler
from .pickling import dump, dumps, dumps_many, loads, loads_many
from .pinning import pin
from .pipelines import flush, pipeline
from .putting import put
from .registry.records import LeaseInfo, RegistryStats
from .slots import slot as _slot  # payloads name it: part of the format
from .unpickler import Unpickler, load

__all__ = [
    "DEFAULT_PROTOCOL",
    "EnvelopeError",
    "HIGHEST_PROTOCOL",
    "LeaseError",
    "LeaseExpiredError",
    "LeaseInfo",
    "LeaseLostError",
    "LeaseNotFoundError",
    "LeaseRejectedError",
    "LeaseReleasedError",
    "LeaseUsedUpError",
    "OwnerGoneError",
    "PayloadInfo",
    "PickleBuffer",
    "PickleError",
    "Pickler",
    "PicklingError",
    "RegistryFullError",
    "RegistryStats",
    "RegistryUnavailableError",
    "SafeRef",
    "SafeRefsError",
    "Settings",
    "Unpickler",
    "UnpicklingError",
    "UnsupportedReferenceError",
    "WrongClusterError",
    "__version__",
    "_fill_if_made",
    "_known_or_made",
    "_slot",
    "consume",
    "dump",
    "dumps",
    "dumps_many",
    "expires_in_s",
    "flush",
    "init",
    "inspect",
    "keepalive",
    "leases",
    "load",
    "loads",
    "loads_many",
    "open_payload",
    "pin",
    "pipeline",
    "put",
    "release",
    "renew",
    "scope",
    "settings",
    "shutdown",
    "stats",
]


if TYPE_CHECKING:
    from . import aio as aio
else:

    def __getattr__(name: str) -> object:
        """`aio`, when it is first wanted: it needs asyncio, which takes a while to import."""
        if name == "aio":
            from importlib import import_module

            return import_module(".aio", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_PICKLES = ("PickleBuffer", "PickleError", "PicklingError", "UnpicklingError")  # documented there


def __dir__() -> list[str]:
    """The face: no submodule but `aio`, none of the names that only payloads need, none of `pickle`'s own classes."""
    shown = {name for name in __all__ if not name.startswith("_")}.difference(_PICKLES)
    return sorted(shown.union(["aio"], (name for name in globals() if name.startswith("__"))))
