"""safe_refs: let Ray references leave Ray, and come back, with a lifetime that somebody chose.

`import safe_refs as pickle` works: `dumps`, `loads` and the rest are `pickle`'s. An `ObjectRef` anywhere in the object is held by
a registry actor, under a lease that ends by `release`, by its `ttl` or by its `uses`. See README.md and docs/.
"""

from pickle import (
    HIGHEST_PROTOCOL,
    PickleBuffer,
    PickleError,
    PicklingError,
    UnpicklingError,
)

from ._version import __version__
from .admin import init, leases, shutdown, stats
from .engine import PROTOCOL as DEFAULT_PROTOCOL
from .errors import (
    EnvelopeError,
    LeaseError,
    LeaseExpiredError,
    LeaseLostError,
    LeaseNotFoundError,
    LeaseReleasedError,
    LeaseUsedUpError,
    OwnerGoneError,
    RegistryFullError,
    RegistryUnavailableError,
    SafeRefsError,
    UnsupportedReferenceError,
    WrongClusterError,
)
from .handle import SafeRef, pin
from .lifetimes import PayloadInfo, expires_in_s, inspect, keepalive, release, renew, scope
from .pickler import Pickler, Unpickler, load
from .pickling import dump, dumps, dumps_many, loads, loads_many, open_payload
from .pipelines import flush, pipeline
from .registry.records import LeaseInfo, RegistryStats
from .slots import slot as _slot  # payloads name it: part of the format

__all__ = [
    "DEFAULT_PROTOCOL",
    "EnvelopeError",
    "HIGHEST_PROTOCOL",
    "LeaseError",
    "LeaseExpiredError",
    "LeaseInfo",
    "LeaseLostError",
    "LeaseNotFoundError",
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
    "Unpickler",
    "UnpicklingError",
    "UnsupportedReferenceError",
    "WrongClusterError",
    "__version__",
    "_slot",
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
    "release",
    "renew",
    "scope",
    "shutdown",
    "stats",
]
