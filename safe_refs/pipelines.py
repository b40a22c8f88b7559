"""`pipeline` and `flush`: passing references on without waiting for the registry each time.

What always holds: what was passed on without waiting is held when `flush` returns, or it raises; `pipeline` flushes at its end, and
an orderly end of the process does, too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from . import config

logger = logging.getLogger("safe_refs")


def flush(timeout: float | timedelta | None = None) -> None:
    """Wait until the registry holds all that this process passed on with `wait=False`.

    Args:
        timeout: seconds to wait; default from `init` or `SAFE_REFS_TIMEOUT`.

    Raises:
        RegistryUnavailableError: not all is held in time; it is still tried, so `flush` may be called again.
        RegistryFullError: or another error of `dumps`: that of the first that failed since the last `flush`. Nothing of a failed one
            is held. What was passed on inside a `pipeline` is its own: it is raised by a `flush` inside, or by the pipeline's end.
    """
    from . import assembly

    assembly.flush(config.deadline(timeout))


@contextmanager
def pipeline() -> Iterator[None]:
    """A context manager: inside, `dumps` and `pin` don't wait, unless they are called with `wait=True`; at its end it flushes.

    It is the thread's or the asyncio task's that entered it, and covers whatever code that calls.

    Raises:
        Exception: at the end, as from `flush`, unless the block raised something itself.
    """
    from .assembly import Account, current_account

    account = current_account.set(Account())
    token = config.waiting.set(False)
    try:
        yield
    except BaseException:
        try:
            flush()
        except Exception:
            logger.exception("a pipeline could not flush")  # the error that ended the block is the one to raise
        raise
    else:
        flush()
    finally:
        config.waiting.reset(token)
        current_account.reset(account)
