"""What `init` has said in the tests' own process, and how that ends with a test."""

from __future__ import annotations

from safe_refs import _settings
from safe_refs._ray import workers
from safe_refs.errors import RegistryUnavailableError
from tests.support.registries import within


def forget() -> None:
    """What `init` said here holds no more, neither in this process nor in the tasks and actors of its job."""
    try:
        workers.connection()
    except RegistryUnavailableError:
        return
    _settings.keep({})
    _settings.publish({}, within(20))
