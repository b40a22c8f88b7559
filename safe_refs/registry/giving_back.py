"""A process gives uses back whose objects it could not open: the references go to the registry as in a pin by a borrower.

What always holds: every wait ends by the deadline. What is not given back stays spent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._ray import workers
from ..config import Deadline
from . import verbs
from .calls import NoRegistryError
from .records import NO_TERMS
from .requests import Unspent, Wanted, identity
from .sessions import Session


def give_back(
    session: Session, spent: Sequence[tuple[Wanted, Sequence[Any]]], lives: set[bytes], deadline: Deadline
) -> None:
    """Give uses back.

    Args:
        session: of this process.
        spent: the uses, each with what the process has got by it.
        lives: the leases that live again by that are added to it.
        deadline: of all waiting.

    Raises:
        RegistryUnavailableError: no answer in time.
    """
    for name in dict.fromkeys(row.address.registry for row, _ in spent):
        mine = [(row, refs) for row, refs in spent if row.address.registry == name]
        uses = [_unspent(session, row, refs) for row, refs in mine]
        session.before_pins(name, [each.plan for each in uses])
        try:
            verbs.give_back(session.registry(name), uses, lives, deadline)
        except NoRegistryError:
            continue  # it is gone, with its leases
        finally:
            for each in uses:
                each.plan.is_unsure = (
                    True  # the use that is given back may have ended the lease, so that the registry let go
                )
            pins = [
                (each.plan, identity(row.address) if each.plan.lease in lives else None)
                for each, (row, _) in zip(uses, mine, strict=True)
            ]
            session.after_pins(name, pins, deadline)


def _unspent(session: Session, row: Wanted, refs: Sequence[Any]) -> Unspent:
    is_client = session.connection.client
    borrowed = [] if is_client else workers.borrowed(refs)
    borrower = session.address if borrowed or is_client else b""
    plan = session.plan(row.address.lease, refs, NO_TERMS, row.asker, borrowed, borrower)
    return Unspent(plan, row.use, row.take)
