"""A driver that leaves Ray, and can't report at once to the owners of what it has pinned to whom it passed that."""

from __future__ import annotations

import os
import signal

import pytest

import safe_refs
from tests.support.leavers import LEAVES
from tests.support.processes import run_python
from tests.support.shards import place
from tests.support.store import holds
from tests.support.values import VALUE_BYTES, opens
from tests.support.waiting import stays

# It can't report for some seconds, as a call is in flight, or the owner has not asked; and it may be interrupted the first time.
LEAVES_LATER = (
    LEAVES
    + """
from safe_refs._ray import counts
from safe_refs.anchoring import exits
touch_zero, touches = counts.touch_zero, []
state, late_s, interrupts = counts.Touch[args[0]], float(args[1]), args[2] == "interrupted"
if args[2] == "slow":  # each answer of a relay takes longer than a loan is to take
    exits._LOAN_S = 0.0

def not_yet(refs):
    touches.append(time.monotonic())
    if interrupts and len(touches) == 3:
        raise KeyboardInterrupt
    return touch_zero(refs) if touches[-1] > touches[0] + late_s else [state] * len(refs)

connect()
ref = borrow(7)
payload = safe_refs.dumps(ref)
counts.touch_zero = not_yet
begun = time.monotonic()
"""
)


@pytest.mark.parametrize(
    ("state", "late_s", "how"),
    [
        pytest.param("BUSY", 0.3, "", marks=pytest.mark.long),
        ("UNKNOWN", 0.3, "interrupted"),
        pytest.param("UNKNOWN", 0.3, "slow", marks=pytest.mark.long),
        pytest.param("UNKNOWN", 2.0, "", marks=pytest.mark.long),  # that is several loans
    ],
)
def test_a_driver_leaves_ray_when_the_owner_knows_whom_it_passed_references(
    cluster: str, owner: str, state: str, late_s: float, how: str
) -> None:
    """On a busy machine that takes a moment. Who is interrupted meanwhile is not lost, and may leave once more."""
    payload, left_s, touches, still = run_python(
        LEAVES_LATER
        + """
try:
    shutdown()
except KeyboardInterrupt:
    assert ray.is_initialized() and ray.get(ref) == value(7)
    shutdown()
print(json.dumps([payload.hex(), time.monotonic() - begun, len(touches), ray.is_initialized()]))
""",
        cluster,
        owner,
        state,
        str(late_s),
        how,
    )
    assert not still
    assert late_s < left_s < late_s + 4
    assert 3 < touches < 40  # each is a risk for other threads of the driver
    stays(lambda: holds(VALUE_BYTES), 3)
    assert opens(bytes.fromhex(payload)) == 7
    safe_refs.release(bytes.fromhex(payload))


@pytest.mark.parametrize("name", ["gone", pytest.param("silent", marks=pytest.mark.long)])
def test_a_driver_leaves_ray_although_nothing_can_be_reported(
    cluster: str, owner: str, registry: str, name: str
) -> None:
    """If the registry is gone, nothing depends on the driver any more. If it is silent, that takes as long as an end may."""
    safe_refs.init()
    pid = place(registry, 0)[1]
    try:
        [left_s] = run_python(
            LEAVES_LATER
            + """
os.kill(int(args[3]), signal.SIGKILL if args[4] == "gone" else signal.SIGSTOP)
time.sleep(1)  # until Ray has seen it
begun = time.monotonic()
shutdown()
print(json.dumps([time.monotonic() - begun]))
""",
            *(cluster, owner, "BUSY", "60", "", str(pid), name),
        )
    finally:
        if name == "silent":
            os.kill(pid, signal.SIGCONT)
    assert left_s < (4 if name == "gone" else 14)
