"""Ray Data: a dataset goes from job to job, without its blocks."""

from __future__ import annotations

import pytest

from tests.integrations.jobs import HandOver
from tests.integrations.libraries import DATA
from tests.support.processes import Driver

pytestmark = pytest.mark.integrations


def test_a_materialized_dataset_goes_to_another_job(cluster: str, hand_over: HandOver) -> None:
    """The other job counts, sums and goes on computing, on the blocks that the first one made: not one of them is in the file."""
    found = hand_over(
        DATA
        + """
def make():
    return ray.data.range(200_000, override_num_blocks=4).map_batches(lambda rows: {"n": rows["id"] * 2}).materialize()

def finish(dataset):
    pass  # it was when it was materialized
""",
        DATA
        + """
def use(dataset):
    evens = dataset.filter(lambda row: row["n"] % 4 == 0)
    return [type(dataset).__name__, len(payload), dataset.count(), int(dataset.sum("n")), evens.count(), dataset.take(2)]
""",
        size=200_000 * 8,
    )
    kind, payload_bytes, *figures = found
    assert kind == "MaterializedDataset"
    assert payload_bytes < 100_000
    assert figures == [200_000, 39_999_800_000, 100_000, [{"n": 0}, {"n": 2}]]


def test_a_lazy_dataset_goes_as_its_plan(cluster: str, driver: Driver) -> None:
    """Nothing has been computed, so nothing is held: it is a plain pickle. What it starts from is held, if that lies in the store."""
    held = driver(
        DATA
        + """
lazy = ray.data.range(1000).map(lambda row: {"n": row["id"] + 1})
plan = safe_refs.dumps(lazy)
on_blocks = ray.data.range(1000, override_num_blocks=4).materialize().map(lambda row: {"n": row["id"] + 1})
payload = safe_refs.dumps(on_blocks)
del lazy, on_blocks
gc.collect()
print(json.dumps([
    [len(safe_refs.inspect(data).handles) for data in (plan, payload)],
    [int(safe_refs.loads(data).sum("n")) for data in (plan, payload)],
    safe_refs.release(payload),
]))
"""
    )
    assert held == [[0, 4], [500_500, 500_500], 1]
