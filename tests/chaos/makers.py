"""What the ledger knows of the deaths of those who own what a payload holds, and of who has made it. Pure."""

from __future__ import annotations

from .ledger import NEVER, Object, Payload

HANDED_OVER_S = 5.0  # after so long without a reference, what depended on a borrower has surely been handed over


def owners_died(payload: Payload, until: float) -> bool:
    sources: list[Object] = [each for source in payload.sources for each in source.objects]
    return any(each.owner.dying_at <= until for each in sources)


def died_soon_after(payload: Payload, until: float) -> bool:
    """Whether its maker was killed so soon that what depended on it may be gone."""
    died, done = payload.maker.dying_at, payload.made.ended
    return died <= until and not payload.maker.left if done == NEVER else died <= min(done + HANDED_OVER_S, until)
