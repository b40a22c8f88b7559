"""Dask on Ray: persisted collections go from job to job, without their data."""

from __future__ import annotations

import pytest

from tests.integrations.jobs import HandOver
from tests.integrations.libraries import DASK
from tests.support.processes import Driver

pytestmark = pytest.mark.integrations


def test_persisted_collections_go_to_another_job(cluster: str, hand_over: HandOver) -> None:
    """An array, a frame, a bag and a delayed value, in one payload: the other job computes on what the first one has computed."""
    found = hand_over(
        DASK
        + """
def make():
    return {
        "array": (dask.array.arange(400_000, chunks=100_000) * 2).persist(),
        "frame": dask.dataframe.from_pandas(pd.DataFrame({"n": np.arange(100_000)}), npartitions=4).assign(m=1.0).persist(),
        "bag": dask.bag.from_sequence(range(1000), npartitions=4).map(lambda n: n + 1).persist(),
        "delayed": dask.delayed(np.arange)(100_000).persist(),
    }

def finish(things):
    dask.compute(*(thing.sum() for thing in things.values()))
""",
        DASK
        + """
def use(things):
    handles = len(safe_refs.inspect(payload).handles)
    return [handles, len(payload), *(int(things[name].sum().compute()) for name in ("array", "bag", "delayed")),
        int(things["frame"].n.sum().compute()), int((things["array"] + 1).max().compute())]
""",
        size=400_000 * 8 + 3 * 100_000 * 8,
    )
    handles, payload_bytes, *figures = found
    assert handles == 4 + 4 + 4 + 1
    assert payload_bytes < 20_000
    assert figures == [2 * 79_999_800_000, 500_500, 4_999_950_000, 4_999_950_000, 799_999]


def test_a_collection_that_is_not_persisted_goes_as_its_graph(cluster: str, driver: Driver) -> None:
    """Nothing has been computed, so nothing is held; what is put off on top of a persisted collection holds that one's chunks."""
    found = driver(
        DASK
        + """
lazy = dask.array.arange(1000, chunks=250) * 2
graph, payload = safe_refs.dumps(lazy), safe_refs.dumps(lazy.persist() + 1)
del lazy
gc.collect()
print(json.dumps([
    [len(safe_refs.inspect(data).handles) for data in (graph, payload)],
    [int(safe_refs.loads(data).sum().compute()) for data in (graph, payload)],
    safe_refs.release(payload),
]))
"""
    )
    assert found == [[0, 4], [999_000, 1_000_000], 1]
