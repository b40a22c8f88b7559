"""Private calls are tried before anchoring trusts them: in a Ray where one has changed, anchoring is off, and nothing is lost."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs._ray import counts, native, trial
from safe_refs._ray.cluster import NAMESPACE
from safe_refs.registry.shard import actor_name
from tests.support import private_calls
from tests.support.actors import Owner, borrower
from tests.support.anchoring import counted
from tests.support.cluster import as_actor
from tests.support.private_calls import CALLS, OF_TOUCH, WAYS
from tests.support.processes import Driver
from tests.support.values import outcome, value

ONE = "safe_refs is tried with Ray 2.52 to 2.60, and this is Ray "


def test_this_ray_passes_and_nothing_is_left_of_the_trial(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial takes less than a millisecond where little is counted, changes no count, and is made once in a process."""
    before, took_s = counted(), []
    for _ in range(20):
        monkeypatch.setattr(counts, "_fault", None)
        begun = time.perf_counter()
        assert counts.can_anchor()
        took_s.append(time.perf_counter() - begun)
    assert min(took_s) < 0.001
    assert counted() == before
    monkeypatch.setattr(trial, "fault", lambda *_: pytest.fail("it was tried once more"))
    assert counts.can_anchor()


@pytest.mark.long
def test_a_changed_call_turns_anchoring_off_before_anything_is_touched(driver: Driver, registry: str) -> None:
    """Whichever it is, and however: the lease depends on its maker, live references stay, and one warning names the call."""
    found = driver(f"from tests.support import private_calls as p; p.before_a_touch({registry!r})")
    assert len(found) == len(CALLS) * len(WAYS)
    for case, seen in found.items():
        [warned] = seen.pop("warned")
        assert f"CoreWorker.{case.split()[0]}" in warned, case
        assert ONE + ray.__version__ in warned
        assert seen == {"read": [1, 2], "counts": True, "depends": [True, True], "loaded": 2}, case


def test_a_call_that_fails_in_the_middle_of_a_touch_costs_no_reference(driver: Driver, registry: str) -> None:
    """All counts are taken up again, whichever step fails, and there is no other touch."""
    found = driver(f"from tests.support import private_calls as p; p.in_a_touch({registry!r})")
    assert {case.split()[0] for case in found} == set(OF_TOUCH)
    for case, seen in found.items():
        [warned] = seen.pop("warned")
        assert f"CoreWorker.{case.split()[0]}" in warned, case
        assert (seen.pop("touched"), seen.pop("same")) == (["BUSY", "BUSY"], True), case
        assert seen == {"read": [1, 2], "counts": True, "depends": [True, True], "loaded": 2}, case


def test_a_call_that_fails_in_a_shards_touch_costs_no_reference(driver: Driver, registry: str) -> None:
    """A shard touches one object after the other, without a look at all counts: what it took down is taken up again."""
    found = driver(f"from tests.support import private_calls as p; p.in_a_shards_touch({registry!r})")
    assert len(found) == 6
    for case, seen in found.items():
        assert seen == {
            "touched": ["BUSY"], "read": [1, 2], "owned": [True, True], "counted": [True, True], "warned": 1,
        }, case  # fmt: skip


@pytest.mark.parametrize(
    "name", [OF_TOUCH[0], *(pytest.param(name, marks=pytest.mark.long) for name in OF_TOUCH[1:-1])]
)
def test_a_call_that_fails_in_a_shard_costs_no_lease(cluster: str, registry: str, name: str) -> None:
    """A shard in which a call fails holds what it held, and serves everybody; leases of borrowers depend on these from then on."""
    kept = safe_refs.dumps(ray.put(value(1)))
    owner, maker = as_actor(Owner).remote(), borrower()
    ray.get(maker.set_up.remote({"SAFE_REFS_REGISTRY": registry}), timeout=60)
    ray.get(maker.keep.remote(ray.get(owner.put.remote(value(2)), timeout=60)), timeout=60)
    shard = ray.get_actor(actor_name(registry), namespace=NAMESPACE)

    def breaks(name: str | None) -> Any:
        return ray.get(shard.__ray_call__.remote(lambda _: private_calls.break_here(name)), timeout=30)

    live = safe_refs.loads(kept)
    breaks(name)
    try:
        others = [ray.get(maker.dumps.remote(), timeout=60) for _ in range(2)]
        assert [outcome(partial(safe_refs.loads, payload)) for payload in (kept, *others)] == [1, 2, 2]
        safe_refs.release([kept, *others])
        assert ray.get(live, timeout=10) == value(1)
    finally:
        breaks(None)
    del live


@pytest.mark.parametrize("what", ["key-value store", "current_cluster_and_job", "get_owner_address", "get_worker_id"])
def test_a_ray_without_the_basics_is_refused_by_name(driver: Driver, cluster: str, what: str) -> None:
    """The first `dumps` of a reference says what this Ray lacks, and which ones are supported."""
    kind, text = driver(f"from tests.support import private_calls as p; p.without_basics({what!r})")
    assert kind == "RegistryUnavailableError"
    assert what in text or "the control store's" in text
    assert ONE + ray.__version__ in text


def test_a_signal_handlers_error_in_the_trial_is_raised(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not taken for a call that has changed."""
    once = private_calls.Changed(native.core_worker(), "get_owner_address", private_calls.fails, lambda made: made == 1)
    monkeypatch.setattr(counts, "connected", lambda: once)
    monkeypatch.setattr(counts, "_fault", None)
    with pytest.raises(RuntimeError, match="deprecated"):
        counts.can_anchor()
    assert counts.can_anchor()
